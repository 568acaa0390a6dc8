"""Stand-ins for modules that PopTorch programs import besides `poptorch`: `popart` and `popdist` of the Poplar SDK."""
