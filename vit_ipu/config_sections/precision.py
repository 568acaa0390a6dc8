"""Section `precision` of a config."""

from __future__ import annotations

from typing_extensions import Literal

from vit_ipu.config_sections.types import FloatType, PositiveFloat, Section


class PrecisionConfig(Section):
    """Number formats of the computation."""

    compute: Literal["auto", "float16", "bfloat16", "float32", "float64"] = "auto"
    """Format of weights and activations; auto: float16 on IPUs, bfloat16 on CUDA and float32 on the CPU. In bfloat16 it
    is that of a copy of the weights, beside float32 weights that the optimizer updates."""
    partials: FloatType = "float32"
    """IPU: format of the partial sums of matrix products."""
    stochastic_rounding: bool = False
    """IPU: rounds to float16 up or down at random, without bias, in training."""
    loss_scale: PositiveFloat = 1.0
    """IPU: factor on the loss that keeps float16 gradients in range."""
    automatic_loss_scale: bool = False
    """IPU: adapts the loss scale during training."""
    accumulation: FloatType = "float32"
    """IPU: format of the accumulated gradient."""
    first_moment: FloatType = "float32"
    """IPU: format of the velocity of SGD or the first moment of Adam, AdamW and LAMB."""
    second_moment: FloatType = "float32"
    """IPU: format of the second moment of Adam, AdamW and LAMB."""
    torch_compile: Literal["auto", "always", "never"] = "auto"
    """CUDA and CPU: use of torch.compile; auto: only on CUDA."""

    def resolve_compute(self, device_kind: str) -> str:
        """Returns the number format that `compute` means on a kind of device (ipu, ipu-sim, cuda, cpu)."""
        if self.compute != "auto":
            return self.compute
        return {"ipu": "float16", "ipu-sim": "float16", "cuda": "bfloat16", "cpu": "float32"}[device_kind]
