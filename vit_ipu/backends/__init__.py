"""The step contract and its backends: PyTorch on one device, and PopTorch on IPUs or on the simulator."""
