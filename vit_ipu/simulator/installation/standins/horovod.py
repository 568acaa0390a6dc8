"""The package of the stand-in for `horovod.torch`."""

__simulated__ = True
