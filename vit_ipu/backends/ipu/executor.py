"""The step contract over two PopTorch executors, one for training and one for inference, that share the IPUs.

A machine has as many IPUs as the training pipeline takes, so the training executor detaches before inference
attaches, and attaches again for its next step; the weights are copied through the host.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, ContextManager, Dict, Optional, Sequence

import poptorch
import torch
from torch import Tensor

from vit_ipu.averaging import WeightAverage, trained_weights, weights_state
from vit_ipu.backends.contract import Device, HostBatch, StepResult
from vit_ipu.backends.ipu.blocks import IpuTrainingStep, begin_stages, keep_block_outputs, keep_middles
from vit_ipu.backends.ipu.distributed import instances
from vit_ipu.backends.ipu.optimizer import build_optimizer
from vit_ipu.backends.ipu.options import DTYPES, inference_options, training_options
from vit_ipu.config import Config
from vit_ipu.mixing import mixing_of_step
from vit_ipu.model import ViT
from vit_ipu.optim import freeze, parameter_groups, set_learning_rate
from vit_ipu.pipeline import BatchPlan, num_ipus
from vit_ipu.step import InferenceStep

_PREFIX = "model."


class IpuBackend:
    """The backend for IPUs and for simulated IPUs: PopTorch is called the same way for both."""

    def __init__(
        self,
        config: Config,
        device: Device,
        *,
        offline: bool = False,
        class_weights: Optional[Sequence[float]] = None,
    ) -> None:
        self._config, self._offline, self._numerics = config, offline, device.numerics
        # PopTorch keeps Python's global lock while IPUs compute (poptorch.cpp: only compilation releases it).
        self.blocks_threads = device.kind == "ipu"
        self.instances = instances(config)
        self.samples_per_call = BatchPlan.of_evaluation(config).samples_per_step // self.instances.count
        self.float_format = DTYPES[config.precision.resolve_compute(device.kind)]
        torch.manual_seed(config.run.seed)
        attention = "explicit" if config.model.attention == "auto" else config.model.attention
        model = ViT(config.model, attention=attention)
        freeze(model, config.optim)
        self._inference_step = InferenceStep(copy.deepcopy(model), config).to(self.float_format).eval()
        self._training_step = IpuTrainingStep(model, config, class_weights).train()
        for part in (self._training_step.model, self._training_step.normalize):  # the loss stays in float32
            part.to(self.float_format)
        self._groups = parameter_groups(model, config.optim)
        self._training: Optional[poptorch.PoplarExecutor] = None
        self._inference: Optional[poptorch.PoplarExecutor] = None
        self._optimizer: Any = None
        self._learning_rate: Optional[float] = None
        self._inference_is_current = False
        self._saved_optimizer: Optional[Dict[str, Any]] = None
        self._saved_rng: Optional[Dict[str, Any]] = None
        self._num_overflows = self._counted_overflows = 0
        self._average = WeightAverage.of(config, self._weights())

    # ----------------------------------------------------------------------------------- training

    def train_step(self, batch: HostBatch, learning_rate: float) -> StepResult:
        batch.require_samples(self._config.pipeline.samples_per_step // self.instances.count)
        self._release_inference()
        training = self._compiled_training()
        self._set_learning_rate(learning_rate)
        images, *others = batch.inputs
        losses = training(self._on_wire(images), *others)  # (D * G * R,)
        self._inference_is_current = False
        self._count_overflows(training)
        if self._average is not None:
            self._average.update(self._weights())
        by_update = losses.float().reshape(self._config.pipeline.device_iterations, -1).mean(dim=1)
        values = self.instances.mean(by_update).tolist()
        return StepResult(tuple(values), sum(values) / len(values), len(batch))

    def time_parts(self, batch: HostBatch, learning_rate: float) -> Dict[str, float]:
        return {}  # the executable of an IPU is one call

    def compile(self) -> None:
        """Compiles for inference and for training, into the executable cache if the config names one.

        Training comes second, because the executor that was compiled last stays attached to the IPUs.
        """
        inference = self._wrapped_inference()
        if not inference.isCompiled():
            self._release_training()
            with self._compilation():
                inference.compile(self._blank_images(self.samples_per_call))
        self._release_inference()
        self._compiled_training()

    def _compiled_training(self) -> poptorch.PoplarExecutor:
        if self._training is None:
            self._training = self._wrap_for_training()
        if not self._training.isCompiled():
            positions = self.instances.positions(BatchPlan.of(self._config))
            count, mixing = len(positions), mixing_of_step(self._config, 0, positions)
            blank = HostBatch(self._blank_images(count), torch.zeros(count, dtype=torch.int64), mixing)
            with self._compilation():
                self._training.compile(*blank.inputs)
            if self._saved_rng is not None and not self._offline:
                self._restore_random_state()
        return self._training

    def _compilation(self) -> ContextManager[Any]:
        """Chooses the simulator's numerics for a program that is compiled inside; PopTorch has none to choose."""
        return nullcontext() if self._numerics is None else poptorch.numerics(self._numerics)

    @property
    def num_overflows(self) -> Optional[int]:
        """The number of float16 values that training has clipped since the run began; only simulated IPUs count it."""
        return self._num_overflows if self._numerics == "ipu" else None

    def _count_overflows(self, training: poptorch.PoplarExecutor) -> None:
        """Adds the values that all host processes have clipped since the last call."""
        if self._numerics != "ipu":
            return
        before, self._counted_overflows = self._counted_overflows, training.num_clipped()
        new = torch.tensor([float(self._counted_overflows - before)])
        self._num_overflows += round(self.instances.mean(new).item() * self.instances.count)

    def _wrap_for_training(self) -> poptorch.PoplarExecutor:
        model = self._training_step.model
        begin_stages(model, self._config)
        if self._config.pipeline.recompute == "every_block":
            keep_block_outputs(model)
        keep_middles(model, self._config.pipeline.recompute_mid_layers)
        self._optimizer = build_optimizer(model, self._config)
        if self._saved_optimizer is not None:
            self._load_optimizer(self._saved_optimizer)
        options = training_options(self._config, offline=self._offline)
        return poptorch.trainingModel(self._training_step, options, self._optimizer)

    def _set_learning_rate(self, learning_rate: float) -> None:
        if learning_rate == self._learning_rate:
            return
        assert self._training is not None
        set_learning_rate(self._optimizer, self._groups, learning_rate)
        self._training.setOptimizer(self._optimizer)
        self._learning_rate = learning_rate

    # ---------------------------------------------------------------------------------- inference

    def predict(self, images: Tensor) -> Tensor:
        if len(images) == 0:
            return torch.empty(0, self._config.model.num_classes)
        size = self.samples_per_call
        executor = self._current_inference()
        logits = []
        with self._compilation():  # which is part of the first call
            for start in range(0, len(images), size):
                chunk = images[start : start + size]
                padding = chunk.new_zeros((size - len(chunk), *chunk.shape[1:]))
                padded = torch.cat([chunk, padding]) if len(padding) else chunk
                logits.append(executor(self._on_wire(padded))[: len(chunk)])
        return torch.cat(logits).float()

    def _current_inference(self) -> poptorch.PoplarExecutor:
        """Returns the inference executor, with the weights that training has reached."""
        inference = self._wrapped_inference()
        self._release_training()
        if not self._inference_is_current:
            weights = self._weights() if self._average is None else self._in_device_format(self._average.weights)
            inference.load_state_dict(_prefixed(weights))
            self._inference_is_current = True
        return inference

    def _wrapped_inference(self) -> poptorch.PoplarExecutor:
        if self._inference is None:
            begin_stages(self._inference_step.model, self._config.for_evaluation())
            options = inference_options(self._config, offline=self._offline)
            self._inference = poptorch.inferenceModel(self._inference_step, options)
        return self._inference

    def _release_training(self) -> None:
        if self._training is not None and self._training.isAttachedToDevice():
            self._training.detachFromDevice()

    def _release_inference(self) -> None:
        if self._inference is not None and self._inference.isAttachedToDevice():
            self._inference.detachFromDevice()

    # -------------------------------------------------------------------------------------- state

    def state_dict(self) -> Dict[str, Any]:
        state: Dict[str, Any] = weights_state(self._weights(), self._average)
        if self._average is not None:  # whose tensors the next host step changes
            state["model"] = {name: tensor.clone() for name, tensor in state["model"].items()}
        state.update(optimizer={}, rng={})
        if self.num_overflows is not None:
            state["counts"] = {"overflows": self.num_overflows}
        if self._training is not None and self._training.isCompiled():
            optimizer = self._optimizer.state_dict()
            state["optimizer"] = {name: dict(optimizer[name] or {}) for name in ("ipu_state", "ipu_param")}
            seed, *words = self._training.rng_state
            state["rng"] = {"seed": seed, "words": torch.tensor(words, dtype=torch.int64), "ipus": self._num_ipus}
        return state

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        target = self._training if self._training is not None else self._training_step
        target.load_state_dict(_prefixed(trained_weights(state)))
        self._inference_is_current = False
        if self._average is not None:
            self._average.load(state["model"])
        self._num_overflows = state.get("counts", {}).get("overflows", self._num_overflows)
        if state.get("optimizer"):
            self._saved_optimizer = state["optimizer"]
            if self._optimizer is not None:
                self._load_optimizer(state["optimizer"])
        if state.get("rng"):
            self._saved_rng = state["rng"]
            if self._training is not None and self._training.isCompiled():
                self._restore_random_state()

    def _restore_random_state(self) -> None:
        """Restores the saved random state in the first instance.

        The saved state belongs to the replicas of the first instance; other instances keep the state of their seed.
        PopART refuses the words of another number of IPUs (popx/devicex.cpp:1199): then only the seed is restored.
        """
        assert self._training is not None
        assert self._saved_rng is not None
        if self.instances.index == 0:
            fits = self._saved_rng.get("ipus", self._num_ipus) == self._num_ipus
            words = self._saved_rng["words"].tolist() if fits else []
            self._training.rng_state = [self._saved_rng["seed"], *words]

    @property
    def _num_ipus(self) -> int:
        """Returns the number of IPUs on which this host process trains."""
        return num_ipus(self._config) // self.instances.count

    def _weights(self) -> Dict[str, Tensor]:
        """Returns the ViT's weights on the host, in the device's format."""
        source = self._training if self._training is not None else self._training_step
        state = source.state_dict()
        return {
            name[len(_PREFIX) :]: tensor.detach().clone() for name, tensor in state.items() if name.startswith(_PREFIX)
        }

    def _in_device_format(self, weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
        return {name: tensor.to(self.float_format) for name, tensor in weights.items()}

    def _load_optimizer(self, saved: Dict[str, Any]) -> None:
        """Loads the optimizer's state on the IPU; the parameter groups stay as the config made them."""
        self._optimizer.load_state_dict(dict(self._optimizer.state_dict(), **saved))

    def close(self) -> None:
        executors = [executor for executor in (self._training, self._inference) if executor is not None]
        self._training = self._inference = None
        if self._config.pipeline.synthetic_data:
            return  # destroy() reads weights back, which PopART lacks for synthetic data: it would read freed memory
        for executor in executors:
            executor.destroy()

    # -------------------------------------------------------------------------------------- inputs

    def _on_wire(self, images: Tensor) -> Tensor:
        """Returns the images to transfer: bytes unchanged, floats in the device's format."""
        return images if images.dtype == torch.uint8 else images.to(self.float_format)

    def _blank_images(self, count: int) -> Tensor:
        side = self._config.model.image_size
        return self._on_wire(torch.zeros(count, 3, side, side, dtype=getattr(torch, self._config.data.transfer)))


def _prefixed(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    return {_PREFIX + name: tensor for name, tensor in weights.items()}
