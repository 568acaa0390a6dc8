"""The step contract on IPUs, through PopTorch or its simulator: the only package that imports poptorch."""
