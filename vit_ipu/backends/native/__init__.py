"""The step contract on one CPU or GPU: plain PyTorch."""
