"""Checks whether PopTorch would take a model and a config, without PopTorch, weights or IPUs.

A model is traced once on meta tensors by the simulator, which judges every operation by PopTorch's own table
(simulator/tables/aten_ops.tsv) and by the rules that PopTorch's sources state. All findings are reported at once.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from vit_ipu import simulator
from vit_ipu.config import Config
from vit_ipu.errors import UserError
from vit_ipu.ipu_remedies import advice_for
from vit_ipu.ipu_rules import ipu_violations, num_rules
from vit_ipu.model import ViT
from vit_ipu.pipeline import BatchPlan
from vit_ipu.simulator.tracing.findings import Finding as RawFinding
from vit_ipu.simulator.tracing.findings import Place, Verdict
from vit_ipu.step import InferenceStep, TrainingStep
from vit_ipu.text import single_line

NOT_CHECKED = (
    "whether the program fits into the memory of the IPUs, how long it compiles, and whether its values stay within "
    "float16"
)
"""What only PopTorch and an IPU can tell."""
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Finding:
    """One thing in a model that PopTorch refuses ("refused"), changes ("different") or may not know ("unknown").

    `operation` is PopTorch's name, as in "aten::erfinv"; `function` is the function of torch that the model calls.
    `file` and `line` are of the model's own source; they are None if only modules of torch itself lead there.
    `modules` are the paths in the model of all modules that reach the line, and `count` is how often they reach it.
    `message` is PopTorch's, `reason` says the same in plain words, and `remedy` says what to do.
    """

    verdict: str
    operation: str
    function: str
    file: Optional[str]
    line: Optional[int]
    modules: Tuple[str, ...]
    module_class: Optional[str]
    reason: str
    remedy: str
    message: str
    count: int

    @property
    def where(self) -> str:
        """The place in the source, and the modules that reach it."""
        module = _modules(self.modules, self.module_class)
        if self.file is None:
            return module or "the model as a whole"
        return f"{shown_path(self.file)}:{self.line}" + (f", in {module}" if module else "")


@dataclass(frozen=True)
class ModuleReport:
    """The judgement of one module, as a program of PopTorch.

    `num_operations` operations of `num_kinds` kinds were judged. `stopped` says where and why the forward pass was not
    judged to its end; None if it was.
    """

    name: str
    findings: Tuple[Finding, ...]
    num_operations: int
    num_kinds: int
    stopped: Optional[str] = None

    @property
    def accepted(self) -> bool:
        """Whether the complete module was judged, and nothing in it is refused."""
        return self.stopped is None and not self.refused

    @property
    def refused(self) -> Tuple[Finding, ...]:
        """The findings that PopTorch would refuse."""
        return tuple(finding for finding in self.findings if finding.verdict == "refused")


@dataclass(frozen=True)
class CheckReport:
    """The judgement of a config: of its settings by `num_rules` rules, and of its training and its inference step."""

    violations: Tuple[str, ...]
    num_rules: int
    programs: Tuple[ModuleReport, ...]

    @property
    def accepted(self) -> bool:
        """Whether PopTorch would take the config and the model."""
        return not self.violations and all(program.accepted for program in self.programs)

    @property
    def not_checked(self) -> str:
        """What only PopTorch and an IPU can tell."""
        return NOT_CHECKED

    def findings(self) -> List[Tuple[Finding, List[str]]]:
        """Returns all findings in the steps, each with the names of the steps that it occurs in."""
        found: Dict[Tuple[Any, ...], Tuple[Finding, List[str]]] = {}
        for program in self.programs:
            for finding in program.findings:
                key = (finding.verdict, finding.message, finding.file, finding.line, finding.modules)
                found.setdefault(key, (finding, []))[1].append(program.name)
        return list(found.values())

    def as_values(self) -> Dict[str, Any]:
        """Returns the report as values for JSON."""
        programs = [dict(asdict(program), accepted=program.accepted) for program in self.programs]
        return {
            "accepted": self.accepted,
            "violations": list(self.violations),
            "num_rules": self.num_rules,
            "programs": programs,
            "not_checked": NOT_CHECKED,
        }


def check_config(config: Config) -> CheckReport:
    """Checks a config: its settings by the rules of PopTorch, PopART and IPUs, and its model with the loss.

    Takes a second or two for any variant, because no tensor has memory.
    """
    programs = (_check_training(config), _check_inference(config))
    return CheckReport(tuple(ipu_violations(config)), num_rules(config), programs)


def check_module(
    module: nn.Module,
    inputs: Union[Tensor, Sequence[Any]] = (),
    named_inputs: Optional[Mapping[str, Any]] = None,
    *,
    training: bool = False,
    name: str = "model",
) -> ModuleReport:
    """Checks any module, called with one micro-batch: `inputs` is a tensor, or a sequence of positional arguments.

    Only shapes and types of inputs and weights matter, so both may be on "meta". With `training`, the module is for
    poptorch.trainingModel, whose forward computes one loss, else for poptorch.inferenceModel. The module's own mode
    (`train()`, `eval()`) decides about dropout. The module is left as it was. Raises UserError if the module fails
    with these inputs for a reason of its own.
    """
    args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    judged = simulator.judge(module, args, dict(named_inputs or {}), training=training)
    stop = judged.stop
    refused = any(finding.verdict == Verdict.REFUSED for finding in judged.findings)
    if stop is not None and not refused and not isinstance(stop.error, NotImplementedError):
        raise UserError(
            f"{_where(stop.place)}: {single_line(stop.reason)}: the model fails with these inputs before PopTorch "
            "matters; call it with them on the CPU first"
        )
    return ModuleReport(
        name,
        tuple(_finding(raw) for raw in judged.findings),
        len(judged.operations),
        len(set(judged.operations)),
        None if stop is None else f"{_where(stop.place)}: {single_line(stop.reason)}",
    )


def shown_path(file: str) -> str:
    """Returns the path of a source file, relative to the current folder if it is inside."""
    inside = os.path.relpath(file) if os.path.isabs(file) else file
    return file if inside.startswith(os.pardir) else inside


# ------------------------------------------------------------------------------ the steps of a config


class _MarkedStep(TrainingStep):
    """A training step whose result PopTorch takes for the loss, as in the IPU backend."""

    def forward(self, images: Tensor, labels: Tensor, mixing: Optional[Tensor] = None) -> Tensor:
        return simulator.identity_loss(super().forward(images, labels, mixing), reduction="none")


def _check_training(config: Config) -> ModuleReport:
    size = config.pipeline.micro_batch_size
    inputs = [_blank_images(config, size), torch.empty(size, dtype=torch.int64, device="meta")]
    if config.data.mixes:
        inputs.append(torch.empty(1, 6, device="meta"))
    with torch.device("meta"):
        step = _MarkedStep(_model(config), config).train()
        for part in (step.model, step.normalize):
            part.to(_float_format(config))
    return check_module(step, inputs, training=True, name="training step")


def _check_inference(config: Config) -> ModuleReport:
    with torch.device("meta"):
        step = InferenceStep(_model(config), config).to(_float_format(config)).eval()
    images = _blank_images(config, BatchPlan.of_evaluation(config).micro_batch_size)
    return check_module(step, images, name="inference step")


def _model(config: Config) -> ViT:
    attention = "explicit" if config.model.attention == "auto" else config.model.attention
    return ViT(config.model, attention=attention)


def _float_format(config: Config) -> torch.dtype:
    """Returns the format of the weights; float32 for a format that IPUs lack, which is a violation of its own."""
    return _DTYPES.get(config.precision.resolve_compute("ipu"), torch.float32)


def _blank_images(config: Config, count: int) -> Tensor:
    side = config.model.image_size
    dtype = torch.uint8 if config.data.transfer == "uint8" else _float_format(config)
    return torch.empty(count, 3, side, side, dtype=dtype, device="meta")


# ------------------------------------------------------------------------------------------ findings


def _finding(raw: RawFinding) -> Finding:
    reason, remedy = advice_for(raw.operation, raw.function, raw.message)
    place = raw.place
    return Finding(
        raw.verdict.value,
        raw.operation,
        raw.function,
        place.file,
        place.line,
        tuple(raw.modules),
        place.module_class,
        reason,
        remedy,
        raw.message,
        raw.count,
    )


def _where(place: Place) -> str:
    if place.file is None:
        return place.module or "the model"
    return f"{shown_path(place.file)}:{place.line}"


def _modules(paths: Sequence[str], module_class: Optional[str]) -> str:
    """Names the modules that reach a line: "blocks.0.attn (Attention) and 11 more"."""
    if not paths:
        return ""
    kind = f" ({module_class})" if module_class and paths[0] else ""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0] or module_class or ''}{kind}{more}"
