"""What `vit-ipu models` says of the variants."""

from __future__ import annotations

import textwrap
from typing import Any, Dict, List

from vit_ipu.config import VARIANTS, ModelConfig
from vit_ipu.model_cost import forward_flops, num_parameters, printed_flops

# Params (M) and Flops (G) as mmclassification 0.x's ViT page prints them, for every image size of the row.
PRINTED = {
    "vit_base_patch16": (86.86, 33.03),
    "vit_base_patch32": (88.30, 8.56),
    "vit_large_patch16": (304.72, 116.68),
}


PRINTED_FORMULA = (
    "printed Flops = n*3*P^2*D + n*D + 2*L*T*D*M + D*K + 2*(2L+1)*T*D at 384 px with K = 1000 classes, where P is the "
    "patch size, n = (384/P)^2, T = n + 1, D the width, L the depth and M = 4D: attention and its projections are "
    "left out; printed Params are those at 384 px with the head"
)
"""What `printed_flops` computes."""


def describe_variants(image_size: int, num_classes: int) -> List[Dict[str, Any]]:
    """Each variant's parameters and multiply-accumulates at a size, beside what mmclassification prints.

    The printed figures are those at 384 px with 1000 classes: `printed_flops` reproduces them.
    """
    rows = []
    for variant, shape in VARIANTS.items():
        nearest = max(image_size // shape["patch_size"], 1) * shape["patch_size"]
        model = ModelConfig(variant=variant, image_size=nearest, num_classes=num_classes)  # type: ignore[call-arg]
        row: Dict[str, Any] = {
            "variant": variant,
            "width": model.width,
            "depth": model.depth,
            "num_heads": model.num_heads,
            "patch_size": model.patch_size,
            "image_size": nearest,
            "parameters": num_parameters(model),
            "flops": forward_flops(model),
        }
        if variant in PRINTED:
            at_384 = model.model_copy(update={"image_size": 384, "num_classes": 1000})
            row["mmclassification"] = {
                "printed_parameters_m": PRINTED[variant][0],
                "printed_flops_g": PRINTED[variant][1],
                "reproduced_parameters": num_parameters(at_384),
                "reproduced_flops": printed_flops(at_384),
                "formula": PRINTED_FORMULA,
            }
        rows.append(row)
    return rows


def variant_lines(rows: List[Dict[str, Any]]) -> List[str]:
    """The same as text."""
    head = "{:20} {:>5} {:>5} {:>5} {:>6} {:>12} {:>8}   {}".format(
        "variant", "width", "depth", "heads", "pixels", "parameters", "GMACs", "mmclassification prints"
    )
    lines = [head]
    for row in rows:
        printed = row.get("mmclassification")
        note = "{printed_parameters_m:.2f} M, {printed_flops_g:.2f} G".format(**printed) if printed else ""
        shape = "{variant:20} {width:5} {depth:5} {num_heads:5} {image_size:6} {parameters:12,}".format(**row)
        lines.append("{} {:8.2f}   {}".format(shape, row["flops"] / 1e9, note).rstrip())
    lines.append("")
    lines += textwrap.wrap("What mmclassification prints, whatever the row: " + PRINTED_FORMULA + ".", 100)
    return lines
