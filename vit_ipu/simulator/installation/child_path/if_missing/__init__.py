"""Stand-ins for packages that may be installed: this folder is in PYTHONPATH only if they are missing."""
