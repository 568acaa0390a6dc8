"""Judges a model: traces it as PopTorch does, and collects all that PopTorch refuses rather than raise the first.

Each refused operation is given a result that stands in for it, so that one trace finds what comes after it too.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from vit_ipu.simulator.errors import Error
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.tracing.argument_limits import uneven_scaling
from vit_ipu.simulator.tracing.arguments import ArgumentParser
from vit_ipu.simulator.tracing.differences import difference_of
from vit_ipu.simulator.tracing.dispatch_mode import UNSUPPORTED_TYPES, RecordingMode, full_name
from vit_ipu.simulator.tracing.findings import ITEM, Finding, Findings, Place, Unfinished, Verdict, message_of
from vit_ipu.simulator.tracing.function_mode import FunctionMode
from vit_ipu.simulator.tracing.graph import Graph
from vit_ipu.simulator.tracing.host_state import HostState, restore
from vit_ipu.simulator.tracing.library_ops import refusal
from vit_ipu.simulator.tracing.op_table import is_known, part_without_handler
from vit_ipu.simulator.tracing.substitutes import result_of_function, result_of_operation
from vit_ipu.simulator.tracing.trace import Trace
from vit_ipu.simulator.tracing.trace_model import fill_trace
from vit_ipu.simulator.weights import Weights

_COMPILED = "PopTorch records a model's Python code as it runs, which compiled and scripted modules do not have"
_NO_DIFFERENCE = ("not contiguous", "not an operation of torch 2.0.1")
"""Parts of warnings that need no finding: about what does not matter, or has a finding of its own."""
_FLOAT64 = "float64 is float32 on an IPU"


class Stop(NamedTuple):
    """Where and why tracing stopped before the end of the forward pass, and the error that stopped it."""

    place: Place
    reason: str
    error: BaseException


class Judgement(NamedTuple):
    """All findings of one trace, in the order in which the forward pass meets them.

    `operations` are the names of the aten operations that were judged, with repetitions; `stop` is None if the
    complete forward pass was traced.
    """

    findings: List[Finding]
    operations: List[str]
    stop: Optional[Stop]


def judge(model: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any], *, training: bool) -> Judgement:
    """Traces `model`, once and without arithmetic, and judges every operation by PopTorch's tables and rules.

    `args` and `kwargs` are those of one micro-batch; weights and inputs may be on "meta". `training` says whether the
    model is for `trainingModel`, which needs one loss, or for `inferenceModel`. The model's own mode decides about
    dropout. Errors of the model itself are in the result's `stop`.
    """
    findings = Findings(model, fill_trace.__code__)
    compiled = _compiled_modules(model)
    if compiled:
        for name in compiled:
            findings.add(Verdict.REFUSED, "torch.compile", "", _COMPILED, Place(module=name))
        reason = Unfinished("a compiled module hides its operations")
        return Judgement(list(findings), [], Stop(Place(module=compiled[0]), str(reason), reason))
    trace = _JudgingTrace(training, findings)
    state = HostState(model)
    try:
        with _warnings_in(findings):
            stop = _stop_of(trace, model, args, kwargs, findings)
    finally:
        for change in state.changes():
            restore(change, change.before)
    return Judgement(list(findings), trace.judged, stop)


def _stop_of(
    trace: Trace, model: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any], findings: Findings
) -> Optional[Stop]:
    """Traces the model; returns where and why its forward pass ended early, or None if it was complete."""
    manager: Any = Options()._execution_strategy.stage_manager
    weights = Weights.of(model)
    try:
        arguments = ArgumentParser(model)(args, kwargs)
    except (AssertionError, Error) as mistaken:
        return Stop(Place(), message_of(mistaken), mistaken)
    try:
        _note_float64(findings, weights, arguments.tensors())
        fill_trace(trace, model, weights, arguments, manager)
        if trace.is_training:
            trace.final_loss()
    except Unfinished as ended:
        return Stop(findings.place_of(ended), str(ended), ended)
    except Exception as failed:
        place = findings.place_of(failed)
        if not _is_poptorchs(failed):
            return Stop(place, f"{type(failed).__name__}: {failed}", failed)
        findings.add(Verdict.REFUSED, _subject(failed), "", message_of(failed), place)
        return None if place == Place() else Stop(place, "the refused call has no result", failed)
    return None


def _is_poptorchs(failed: Exception) -> bool:
    """Tells whether PopTorch raises the error, of which some are plain assertions."""
    lines = traceback.extract_tb(failed.__traceback__)
    in_simulator = bool(lines) and lines[-1].filename.startswith(str(Path(__file__).parents[1]))
    return isinstance(failed, Error) or (isinstance(failed, AssertionError) and in_simulator)


class _JudgingTrace(Trace):
    """A trace that keeps what a trace raises, and continues."""

    def __init__(self, is_training: bool, findings: Findings) -> None:
        super().__init__(is_training)
        self.judged: List[str] = []
        self._findings = findings

    def refuse(self, refused: Exception, subject: str = "") -> None:
        kind, _, name = subject.partition(" ")
        place = Place(module=name) if kind == "weight" else Place()
        self._findings.add(Verdict.REFUSED, kind or "the model", "", message_of(refused), place)

    def recording_mode(self) -> RecordingMode:
        return _JudgingMode(self.graph, self.place, self._findings, self.judged)

    def function_mode(self, recording_mode: RecordingMode) -> FunctionMode:
        return _JudgingFunctions(recording_mode, self.note_call, self._findings)

    def place(self) -> Tuple[int, int]:
        try:
            return super().place()
        except Error as refused:
            self._findings.refuse(refused, "poptorch.Block")
            return len(self.stage_ipus) - 1, self.stage_ipus[-1]

    def note_float64(self) -> None:
        super().note_float64()
        self._findings.add(Verdict.DIFFERENT, "float64", "", _FLOAT64)


class _JudgingMode(RecordingMode):  # type: ignore[no-untyped-call]
    """Records operations, and notes what PopTorch refuses rather than raise it."""

    def __init__(
        self, graph: Graph, place: Callable[[], Tuple[int, int]], findings: Findings, judged: List[str]
    ) -> None:
        super().__init__(graph, place)
        self._findings, self._judged = findings, judged

    def run(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        read = [tensor for tensor in flatten((args, kwargs)) if tensor.is_meta]
        if read:
            self._judged.append(full_name(func))
        if any(not self._graph.is_constant(tensor) for tensor in read):
            self._note_limits(func, args, kwargs)
        try:
            result = super().run(func, args, kwargs)
            self._check_size(func, read, result)
            return result
        except (Error, DynamicOutputShapeException) as refused:
            self._note_refusal(refused, func, args, read)
            return result_of_operation(func, args, kwargs)

    def _note_refusal(self, refused: Exception, func: Any, args: Tuple[Any, ...], read: List[Tensor]) -> None:
        """Notes a refused operation; a type that IPUs lack is refused where it is made, not where it is used."""
        name = func._schema.name
        if any(tensor.dtype in UNSUPPORTED_TYPES for tensor in read):
            try:
                self._check_supported(func, name, args)
                return
            except Error as other:
                refused = other
        self._findings.refuse(refused, ITEM if name == "aten::_local_scalar_dense" else name, self.function)

    def _check_size(self, func: Any, read: List[Tensor], result: Any) -> None:
        """Notes an operation that makes a result without elements of tensors that have some."""
        made = flatten(result)[:1]
        if read and made and made[0].numel() == 0 and all(tensor.numel() for tensor in read):
            message = f"Zero-sized tensors are unsupported (Got shape {list(made[0].shape)})."
            self._findings.add(Verdict.REFUSED, func._schema.name, self.function, message)

    def _note_limits(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        """Notes what PopTorch does not raise: operations that the table lacks, and results that differ."""
        name = func._schema.name
        if not is_known(full_name(func)):
            newer = f"{name} is newer than torch 2.0.1, PopTorch's torch"
            self._findings.add(Verdict.UNKNOWN, name, self.function, newer)
        problem, difference = uneven_scaling(name, args), difference_of(name, args, kwargs)
        if problem is not None:
            self._findings.add(Verdict.REFUSED, name, self.function, problem)
        if difference is not None:
            self._findings.add(Verdict.DIFFERENT, name, self.function, difference)

    def note_unsupported(self, name: str) -> None:
        part = part_without_handler(name)
        message = f"PopTorch has no handler for {part or name}" + (f", which torch makes of {name}" if part else "")
        self._findings.add(Verdict.REFUSED, name, self.function, message)

    def note_not_lowered(self, name: str) -> None:
        self._findings.refuse(refusal(name), name)


class _JudgingFunctions(FunctionMode):
    """Checks calls of torch's functions, and notes what PopTorch refuses rather than raise it."""

    def __init__(self, recording_mode: RecordingMode, on_call: Callable[..., None], findings: Findings) -> None:
        super().__init__(recording_mode, on_call)
        self._findings = findings

    def run(self, func: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        try:
            return super().run(func, args, kwargs)
        except (Error, TypeError) as refused:
            name = getattr(func, "__name__", "")
            if isinstance(refused, TypeError) and name != "numpy":
                raise
            self._findings.refuse(refused, name, name)
            self._recording_mode.function = name
            with self._findings.muted():
                return result_of_function(func, args, kwargs)


@contextmanager
def _warnings_in(findings: Findings) -> Iterator[None]:
    """Turns the warnings that PopTorch logs while it traces into findings."""

    class Catcher(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            message = record.getMessage()
            if record.levelno >= logging.WARNING and not any(text in message for text in _NO_DIFFERENCE):
                subject = message.partition(": ")[0] if ": " in message else message.partition(" ")[0]
                findings.add(Verdict.DIFFERENT, subject, "", message)
            return False

    catcher, level = Catcher(), logger.level
    logger.addFilter(catcher)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeFilter(catcher)
        logger.setLevel(level)


def _compiled_modules(model: nn.Module) -> List[str]:
    """Returns the paths of the modules that torch.compile or torch.jit have made, without those inside others."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # which is slow to import, and imported if it has been used
    kinds = (torch.jit.ScriptModule, *((dynamo.OptimizedModule,) if dynamo is not None else ()))
    found: List[str] = []
    for name, module in model.named_modules():
        if isinstance(module, kinds) and not any(not outer or name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def _note_float64(findings: Findings, weights: Weights, inputs: List[Tensor]) -> None:
    for name, tensor in weights.items():
        if tensor.dtype == torch.float64:
            findings.add(Verdict.DIFFERENT, "weight", "", _FLOAT64, Place(module=name))
    if any(tensor.dtype == torch.float64 for tensor in inputs):
        findings.add(Verdict.DIFFERENT, "input", "", _FLOAT64, Place())


def _subject(refused: Exception) -> str:
    return "the loss" if "loss" in message_of(refused) else "the model"
