"""The step contract, and what meets it: PyTorch on one device, and PopTorch on IPUs or over the simulator."""
