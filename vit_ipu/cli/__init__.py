"""Command line: commands, their output, and their progress bars."""
