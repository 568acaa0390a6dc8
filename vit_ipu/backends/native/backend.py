"""The step contract on CPUs or GPUs: plain PyTorch, with accumulation over merged micro-batches.

Under torchrun, each process computes a part of the micro-batches of every update (distributed.py).
"""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import torch
from torch import Tensor, nn

from vit_ipu.averaging import WeightAverage, trained_weights, weights_state
from vit_ipu.backends.contract import HostBatch, StepResult
from vit_ipu.backends.native.distributed import instances, leave
from vit_ipu.backends.native.host_memory import keep_freed_memory
from vit_ipu.backends.native.inference import Predictor
from vit_ipu.backends.native.layers import layers_for
from vit_ipu.backends.native.micro_batches import first_size, measured_size, merged_sizes
from vit_ipu.backends.native.optimizer import build_optimizer
from vit_ipu.backends.native.passes import Passes
from vit_ipu.backends.native.transfers import Anchor, PendingResult, Uploader
from vit_ipu.backends.native.working_copy import WorkingCopy
from vit_ipu.config import Config
from vit_ipu.errors import RunFailed
from vit_ipu.model import ViT
from vit_ipu.optim import freeze, parameter_groups, set_learning_rate
from vit_ipu.step import InferenceStep, TrainingStep
from vit_ipu.text import counted

_ANCHOR_SECONDS = 600
"""Age from which an anchor is renewed: the time between two events of a GPU is a float32 of milliseconds."""


class NativeBackend:
    """The backend for the torch device of this process, where the config's replicas run one after the other."""

    float_format = torch.float32
    blocks_threads = False
    num_overflows = None

    def __init__(self, config: Config, device: torch.device, class_weights: Optional[Sequence[float]] = None) -> None:
        self._config, self._device = config, device
        self.instances = instances(device.type)
        compute = config.precision.resolve_compute(device.type)
        if device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(config.run.seed)
        dtype = torch.float64 if compute == "float64" else torch.float32
        self._model = ViT(config.model, layers=layers_for(config, device)).to(device, dtype)
        freeze(self._model, config.optim)
        self._copy = WorkingCopy(self._model) if compute == "bfloat16" else None
        computing = self._model if self._copy is None else self._copy.model
        self._average = WeightAverage.of(config, self._model.state_dict())
        self._averaged = None if self._average is None else copy.deepcopy(computing)
        self._is_averaged_current = False
        self._training_step = TrainingStep(computing, config, class_weights).to(device)
        inference_step = InferenceStep(computing if self._averaged is None else self._averaged, config).to(device)
        for step in (self._training_step, inference_step):
            step.normalize.to(dtype)
        self._groups = parameter_groups(self._model, config.optim)
        self._optimizer = build_optimizer(self._model, config, fused=device.type == "cuda")
        self._passes = Passes(
            self._training_step,
            self._copy,
            device,
            factor=config.reduction_factor,
            compiles=_compiles(config, device),
        )
        self._uploader = Uploader(device)
        self._last_result: Optional[PendingResult] = None
        self._anchor: Optional[Anchor] = None
        self._predictor = Predictor(inference_step, config, device)
        self.micro_batch_size = first_size(config, device, self.instances.count)
        self._is_size_measured = device.type != "cuda" or config.pipeline.native_micro_batch_size is not None
        self._rng = _rng_state(device)

    @property
    def samples_per_call(self) -> int:
        """A GPU predicts batches of one size, so that nothing is compiled again."""
        return self._predictor.batch_size if self._device.type == "cuda" else 1

    # ----------------------------------------------------------------------------------- training

    def train_step(self, batch: HostBatch, learning_rate: float) -> StepResult:
        batch.require_samples(self._config.pipeline.samples_per_step // self.instances.count)
        self._training_step.train()
        set_learning_rate(self._optimizer, self._groups, learning_rate)
        size = self._config.pipeline.global_batch_size // self.instances.count
        if not self._is_size_measured:
            self._measure_size(batch)
        anchor = self._renewed_anchor() if self._device.type == "cuda" else None
        with self._own_random_numbers():
            losses = torch.stack([self._update(self._uploader.upload(part)) for part in batch.split(size)])
        if self._average is not None:
            self._average.update(self._model.state_dict())
            self._is_averaged_current = False
        if anchor is not None:
            return self._pending(PendingResult(losses, len(batch), self.instances.mean, anchor))
        values = self.instances.mean(losses).tolist()
        return StepResult(tuple(values), sum(values) / len(values), len(batch))

    def _renewed_anchor(self) -> Anchor:
        """Returns an event of known time from which the end of the next host step is measured.

        It is renewed when the GPU has nothing to do, and by `_pending` after ten minutes.
        """
        last = self._last_result
        if self._anchor is None or last is None or last.is_done:
            self._anchor = Anchor.now()
        return self._anchor

    def _pending(self, result: PendingResult) -> PendingResult:
        """Returns the result once the GPU has ended the host step before, so that only one waits for it."""
        if self._last_result is not None:
            self._last_result.wait()
            if self._anchor is not None and self._last_result.ended_at - self._anchor.time > _ANCHOR_SECONDS:
                self._anchor = self._last_result.as_anchor()
        self._last_result = result
        return result

    def time_parts(self, batch: HostBatch, learning_rate: float) -> Dict[str, float]:
        self.train_step(batch, learning_rate).wait()  # which sets the learning rate and the micro-batch size
        size = self._config.pipeline.global_batch_size // self.instances.count
        seconds = {"to the device": 0.0, "passes": 0.0, "update": 0.0}
        with self._own_random_numbers():
            for part in batch.split(size):
                start = time.perf_counter()
                on_device = self._uploader.upload(part)
                seconds["to the device"] += self._seconds_since(start)
                start = time.perf_counter()
                self._passes.accumulate(on_device, self.micro_batch_size)
                seconds["passes"] += self._seconds_since(start)
                start = time.perf_counter()
                self._apply_gradients()
                seconds["update"] += self._seconds_since(start)
        return seconds

    def _seconds_since(self, start: float) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def _update(self, batch: HostBatch) -> Tensor:
        """Makes one weight update on this process's part of a global batch, and returns the part's mean loss."""
        loss = self._in_memory(
            lambda: self._passes.accumulate(batch, self.micro_batch_size), self._lower_micro_batch_size
        )
        self._apply_gradients()
        return loss

    def _apply_gradients(self) -> None:
        if self._config.optim.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optim.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._refresh_copy()

    def _refresh_copy(self) -> None:
        if self._copy is not None:
            self._copy.refresh()

    def _refresh_averaged(self) -> None:
        """Loads the average into the model that predicts with it, after a change."""
        if self._average is not None and self._averaged is not None and not self._is_averaged_current:
            self._averaged.load_state_dict(self._average.weights)
            self._is_averaged_current = True

    # ------------------------------------------------------------------------------------- memory

    def _in_memory(
        self, work: Callable[[], Tensor], make_smaller: Callable[[torch.cuda.OutOfMemoryError], None]
    ) -> Tensor:
        """Returns the result of `work`, which is made smaller and called again each time memory runs out.

        `make_smaller` raises RunFailed if it cannot become smaller.
        """
        rng = _rng_state(self._device)
        while True:
            try:
                return work()
            except torch.cuda.OutOfMemoryError as error:
                make_smaller(error)
            self._optimizer.zero_grad(set_to_none=True)  # after the error, whose traceback holds tensors, is gone
            self._passes.reset()
            torch.cuda.empty_cache()
            _set_rng_state(rng)

    def _measure_size(self, batch: HostBatch) -> None:
        """Sets the micro-batch size to the largest that fits the memory, by two small passes."""
        rng = _rng_state(self._device)
        self.micro_batch_size = measured_size(
            merged_sizes(self._config.pipeline, self.instances.count),
            lambda size: self._passes.try_size(self._uploader.upload(next(batch.split(size)))),
            sum(parameter.numel() for parameter in self._model.parameters()),
            self._device,
        )
        self._is_size_measured = True
        _set_rng_state(rng)

    def _lower_micro_batch_size(self, error: torch.cuda.OutOfMemoryError) -> None:
        pipeline, size = self._config.pipeline, self.micro_batch_size
        smaller = [other for other in merged_sizes(pipeline, self.instances.count) if other < size]
        if self.instances.count > 1:  # the other processes are waiting for this one's gradients
            remedy = f"set pipeline.native_micro_batch_size to less than {size}"
            raise RunFailed(
                f"{self._device}: out of memory with micro-batches of {counted(size, 'image')}: {remedy}"
            ) from error
        if pipeline.native_micro_batch_size is not None or not smaller:
            remedy = "lower pipeline.micro_batch_size, or use --device cpu"
            if pipeline.native_micro_batch_size is not None:
                remedy = "remove pipeline.native_micro_batch_size, so that smaller micro-batches are tried"
            raise RunFailed(
                f"{self._device}: out of memory with micro-batches of {counted(size, 'image')}: {remedy}"
            ) from error
        self.micro_batch_size = smaller[-1]

    # ---------------------------------------------------------------------------------- inference

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        self._refresh_averaged()
        return self._in_memory(lambda: self._predictor.predict(images), self._predictor.lower_batch_size)

    # -------------------------------------------------------------------------------------- state

    def compile(self) -> None:
        """Does nothing: torch.compile compiles at the first step."""

    def close(self) -> None:
        """Leaves the other processes of the run, if there are some."""
        leave()

    def state_dict(self) -> Dict[str, Any]:
        names = [name for name, _ in self._model.named_parameters()]
        by_index = self._optimizer.state_dict()["state"]
        order = self._order_of_names()
        state = {order[index]: values for index, values in by_index.items()}
        weights = self._model.state_dict()
        return _on_host(
            {
                **weights_state(weights, self._average),
                "optimizer": {name: state[name] for name in names if name in state},
                "rng": dict(self._rng),
            }
        )

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._model.load_state_dict(trained_weights(state))
        self._refresh_copy()
        if self._average is not None:
            self._average.load({name: tensor.to(self._device) for name, tensor in state["model"].items()})
            self._is_averaged_current = False
        if "optimizer" in state:
            saved = _on_host(state["optimizer"])  # a copy: torch would update the caller's tensors in place
            by_index = {index: saved[name] for index, name in enumerate(self._order_of_names()) if name in saved}
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": by_index, "param_groups": groups})
        if "rng" in state:
            self._rng = dict(self._rng, **state["rng"])

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Makes dropout draw from a random state that nothing else in the process (such as a DataLoader) shifts.

        Several processes share the state, and draw from seeds that it gives and that differ between them, so that a
        run may continue with another number of processes.
        """
        outside = _rng_state(self._device)
        _set_rng_state(self._rng)
        if self.instances.count > 1:
            seed = int(torch.randint(1 << 62, ()))
            self._rng = dict(self._rng, torch=torch.get_rng_state())
            torch.manual_seed(seed + self.instances.index)
        try:
            yield
        finally:
            if self.instances.count == 1:
                self._rng = _rng_state(self._device)
            _set_rng_state(outside)

    def _order_of_names(self) -> List[str]:
        """Lists the names of the parameters in the order of the optimizer's numbering."""
        return [name for group in self._groups for name in group.names]


def _compiles(config: Config, device: torch.device) -> bool:
    choice = config.precision.torch_compile
    return choice == "always" or (choice == "auto" and device.type == "cuda")


def _on_host(values: Any) -> Any:
    """Returns the nested dict with its tensors copied to the host."""
    if isinstance(values, Tensor):
        return values.detach().to("cpu", copy=True)
    if isinstance(values, dict):
        return {key: _on_host(value) for key, value in values.items()}
    return values


def _rng_state(device: torch.device) -> Dict[str, Tensor]:
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_rng_state(state: Dict[str, Tensor]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
