"""Loading: the order of images in host steps, and the worker processes that fill host steps."""
