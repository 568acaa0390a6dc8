"""Modules that install the simulator when a child process imports them: the folder is in its PYTHONPATH."""
