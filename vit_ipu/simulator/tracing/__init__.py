"""Compilation: one forward pass on meta tensors, what it records, and what PopTorch would refuse."""
