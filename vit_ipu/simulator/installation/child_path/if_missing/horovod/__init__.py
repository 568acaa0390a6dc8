"""`horovod` in a child process of `python -m vit_ipu.simulator`: becomes the simulator's when imported."""

import _simulated  # type: ignore[import-not-found]  # noqa: F401
