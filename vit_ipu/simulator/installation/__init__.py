"""How the simulator takes the place of poptorch, popart, popdist and horovod, in this process and its children."""
