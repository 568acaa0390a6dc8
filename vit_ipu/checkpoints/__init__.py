"""Checkpoints: saving and resuming a run, and reading weights to start from."""
