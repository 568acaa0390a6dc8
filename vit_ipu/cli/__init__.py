"""The command line: its commands, what they print, and their progress bars."""
