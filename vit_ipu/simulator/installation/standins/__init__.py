"""Stand-ins for what PopTorch programs import beside `poptorch`: `popart` and `popdist` of the Poplar SDK."""
