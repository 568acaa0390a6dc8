"""The step contract on CPUs or GPUs: plain PyTorch, with accumulation over merged micro-batches.

Under torchrun, each process computes a part of the micro-batches of every update (distributed.py).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List

import torch
from torch import Tensor, nn

from vit_ipu.backends.contract import HostBatch, StepResult
from vit_ipu.backends.native.distributed import instances, leave, lost_processes_reported, parallel
from vit_ipu.backends.native.micro_batches import first_size, merged_sizes
from vit_ipu.backends.native.optimizer import build_optimizer
from vit_ipu.config import Config
from vit_ipu.errors import RunFailed
from vit_ipu.model import ViT
from vit_ipu.optim import parameter_groups
from vit_ipu.step import InferenceStep, TrainingStep


class NativeBackend:
    """The backend for the torch device of this process, where the config's replicas run one after the other."""

    samples_per_call = 1
    float_format = torch.float32
    num_overflows = None

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config, self._device = config, device
        self.instances = instances(device.type)
        compute = config.precision.resolve_compute(device.type)
        self._bfloat16 = compute == "bfloat16"
        torch.manual_seed(config.run.seed)
        attention = "fused" if config.model.attention == "auto" else config.model.attention
        self._model = ViT(config.model, attention=attention)
        dtype = torch.float64 if compute == "float64" else torch.float32
        self._training_step = TrainingStep(self._model, config).to(device, dtype)
        self._inference_step = InferenceStep(self._model, config).to(device, dtype)
        self._optimizer = build_optimizer(self._model, config, fused=device.type == "cuda")
        self._parallel = parallel(self._training_step, device)
        self._compiles = _compiles(config, device)
        self._loss_of = _compiled(self._loss, self._compiles)
        self._logits_of = _compiled(self._logits, self._compiles)
        self.micro_batch_size = first_size(config, device, self.instances.count)
        self._rng = _rng_state(device)

    # ----------------------------------------------------------------------------------- training

    def train_step(self, batch: HostBatch, learning_rate: float) -> StepResult:
        self._training_step.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        size = self._config.pipeline.global_batch_size // self.instances.count
        with self._own_random_numbers():
            losses = [self._update(part) for part in batch.split(size)]
        values = self.instances.mean(torch.stack(losses)).tolist()
        return StepResult(tuple(values), sum(values) / len(values), len(batch))

    def _update(self, batch: HostBatch) -> Tensor:
        """Makes one weight update on this process's part of a global batch, and returns the part's mean loss."""
        loss = self._in_memory(lambda: self._accumulate(batch))
        if self._config.optim.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optim.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _accumulate(self, batch: HostBatch) -> Tensor:
        """Adds the reduced gradient of a part of a global batch, and returns the part's mean loss."""
        total = torch.zeros((), device=self._device)
        parts = list(batch.split(self.micro_batch_size))
        for number, part in enumerate(parts):
            share = len(part) / len(batch)
            with ExitStack() as stack:
                if self._parallel is not None:
                    stack.enter_context(lost_processes_reported())
                    if number < len(parts) - 1:  # the last backward pass averages the sums of all processes
                        stack.enter_context(self._parallel.no_sync())
                loss = self._loss_of(*map(self._to_device, part.inputs))
                (loss * (share * self._config.reduction_factor)).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach() * share
        return total

    def _loss(self, *inputs: Tensor) -> Tensor:
        step = self._training_step if self._parallel is None else self._parallel
        with self._precision():
            return step(*inputs)

    def _logits(self, images: Tensor) -> Tensor:
        with self._precision():
            return self._inference_step(images)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16)

    # ------------------------------------------------------------------------------------- memory

    def _in_memory(self, work: Callable[[], Tensor]) -> Tensor:
        """Returns the result of `work`, which is called again with smaller micro-batches each time memory runs out.

        Raises RunFailed if the micro-batches cannot become smaller.
        """
        rng = _rng_state(self._device)
        while True:
            try:
                return work()
            except torch.cuda.OutOfMemoryError as error:
                self._lower_micro_batch_size(error)
            self._optimizer.zero_grad(set_to_none=True)  # after the error, whose traceback holds tensors, is gone
            torch.cuda.empty_cache()
            _set_rng_state(rng)

    def _lower_micro_batch_size(self, error: torch.cuda.OutOfMemoryError) -> None:
        pipeline, size = self._config.pipeline, self.micro_batch_size
        smaller = [other for other in merged_sizes(pipeline, self.instances.count) if other < size]
        if self._parallel is not None:  # the other processes are waiting for this one's gradients
            remedy = f"set pipeline.native_micro_batch_size to less than {size}"
            raise RunFailed(f"{self._device}: out of memory with micro-batches of {size} images: {remedy}") from error
        if pipeline.native_micro_batch_size is not None or not smaller:
            remedy = "lower pipeline.micro_batch_size, or use --device cpu"
            if pipeline.native_micro_batch_size is not None:
                remedy = "remove pipeline.native_micro_batch_size, so that smaller micro-batches are tried"
            raise RunFailed(f"{self._device}: out of memory with micro-batches of {size} images: {remedy}") from error
        self.micro_batch_size = smaller[-1]

    # ---------------------------------------------------------------------------------- inference

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        self._inference_step.eval()
        return self._in_memory(lambda: self._predict(images))

    def _predict(self, images: Tensor) -> Tensor:
        size = self.micro_batch_size
        logits = [self._predict_chunk(images[start : start + size], size) for start in range(0, len(images), size)]
        return torch.cat(logits) if logits else torch.empty(0, self._config.model.num_classes)

    def _predict_chunk(self, images: Tensor, size: int) -> Tensor:
        count = len(images)
        if self._compiles and count < size:  # one shape, so that nothing is compiled again
            images = torch.cat([images, images.new_zeros((size - count, *images.shape[1:]))])
        return self._logits_of(self._to_device(images))[:count].cpu()

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
        return {
            "model": _on_host(self._model.state_dict()),
            "optimizer": _on_host({name: state[name] for name in names if name in state}),
            "rng": dict(self._rng),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
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
        groups = parameter_groups(self._model, self._config.optim)
        return [name for group in groups for name in group.names]

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


def _compiles(config: Config, device: torch.device) -> bool:
    choice = config.precision.torch_compile
    return choice == "always" or (choice == "auto" and device.type == "cuda")


def _compiled(function: Callable[..., Tensor], compiles: bool) -> Callable[..., Tensor]:
    return torch.compile(function) if compiles else function


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
