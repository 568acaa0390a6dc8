"""Predictions in batches of one size, compiled once that pays."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from vit_ipu.backends.native.micro_batches import inference_size
from vit_ipu.config import Config
from vit_ipu.errors import RunFailed
from vit_ipu.model_cost import forward_flops
from vit_ipu.step import InferenceStep
from vit_ipu.text import counted

_WORTH_COMPILING = 1e16
"""Multiply-accumulates after which compiling has paid for itself: on an H200 it takes 15 s, and then saves a quarter
of the time of products at 350 TFLOP/s."""


class Predictor:
    """The logits of images, by an inference step on a device."""

    def __init__(self, step: InferenceStep, config: Config, device: torch.device) -> None:
        self.logits_of: Callable[[Tensor], Tensor] = step
        self._step = step
        self._config, self._device = config, device
        self.batch_size = inference_size(config, device)
        self._operations = forward_flops(config.model)
        self._num_predicted = 0
        self._is_compiled = False

    def predict(self, images: Tensor) -> Tensor:
        """Returns the logits (n, K), in float32 on the host, of n images (n, 3, S, S)."""
        if not len(images):
            return torch.empty(0, self._config.model.num_classes)
        if not self._is_compiled and self._pays():
            self.logits_of, self._is_compiled = torch.compile(self.logits_of, dynamic=False), True
        self._step.eval()
        logits = [self._logits(part) for part in images.split(self.batch_size)]  # type: ignore[no-untyped-call]
        self._num_predicted += len(images)
        return torch.cat(logits).cpu()

    def lower_batch_size(self, error: torch.cuda.OutOfMemoryError) -> None:
        """Halves the batch size after memory has run out. Raises RunFailed if the config fixes it, or if it is 1."""
        size = self.batch_size
        remedy = "use --device cpu"
        if self._config.pipeline.native_micro_batch_size is not None:
            remedy = "remove pipeline.native_micro_batch_size, so that fewer images are tried"
        elif size > 1:
            self.batch_size = size // 2
            return
        raise RunFailed(
            f"{self._device}: out of memory in predicting {counted(size, 'image')} at a time: {remedy}"
        ) from error

    def _pays(self) -> bool:
        choice = self._config.precision.torch_compile
        pays = self._device.type == "cuda" and self._num_predicted * self._operations > _WORTH_COMPILING
        return choice == "always" or (choice == "auto" and pays)

    def _logits(self, images: Tensor) -> Tensor:
        count, missing = len(images), self.batch_size - len(images)
        if self._is_compiled and missing:  # one shape, so that nothing is compiled again
            images = torch.cat([images, images.new_zeros((missing, *images.shape[1:]))])
        return self.logits_of(images.to(self._device, non_blocking=True))[:count]
