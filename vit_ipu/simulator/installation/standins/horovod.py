"""The package that contains the stand-in for `horovod.torch`."""

__simulated__ = True
