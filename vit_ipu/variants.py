"""Named shapes of Vision Transformers.

Sizes are those of the ViT paper (arXiv:2010.11929, table 1) and of DeiT (arXiv:2012.12877, table 1), each at three
patch sizes, and a tiny one for tests that splits over four IPUs.
"""

from __future__ import annotations

from typing import Dict

_SIZES = {
    "tiny": {"width": 192, "depth": 12, "num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
    "large": {"width": 1024, "depth": 24, "num_heads": 16},
    "huge": {"width": 1280, "depth": 32, "num_heads": 16},
}
VARIANTS: Dict[str, Dict[str, int]] = {
    f"vit_{size}_patch{patch}": dict(shape, patch_size=patch)
    for size, shape in _SIZES.items()
    for patch in (14, 16, 32)
}
"""Width, depth, num_heads and patch_size of each variant, by name."""
VARIANTS["vit_test"] = {"width": 32, "depth": 4, "num_heads": 2, "patch_size": 7}
