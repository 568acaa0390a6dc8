"""`horovod` in a child process of `python -m vit_ipu.simulator`: importing it installs the simulator in its place."""

import _simulated  # type: ignore[import-not-found]  # noqa: F401
