"""Executors: a compiled model, its weights on the host and on the IPUs, and the results of calls."""
