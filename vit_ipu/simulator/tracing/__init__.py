"""Compilation: the trace of one forward pass on meta tensors, and the checks that PopTorch would make."""
