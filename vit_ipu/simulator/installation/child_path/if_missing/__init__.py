"""Modules that stand in for what may be installed: the folder is in PYTHONPATH only where it is not."""
