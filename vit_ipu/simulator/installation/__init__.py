"""Installation of the simulator as poptorch, popart, popdist and horovod, in this process and its children."""
