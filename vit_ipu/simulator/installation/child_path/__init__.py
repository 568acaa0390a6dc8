"""Modules that install the simulator when a child process imports them: this folder is in the child's PYTHONPATH."""
