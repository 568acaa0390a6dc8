"""Cost of a compiled model on each IPU, counted from its traced forward pass: memory, FLOPs, bytes between stages.

All numbers are for one replica; work and traffic are for one micro-batch. A tensor belongs to the stage that makes it,
an input of the model to the first stage that reads it. A tensor that a later stage reads is copied from stage to stage
on the way (popart contiguateipucopyindices.cpp), and the tensor's gradient returns the same way. Activations are the
tensors that torch.autograd keeps and the tensors that live between operations; the temporary memory and the code of an
operation are not counted. With recomputation, a stage keeps the tensors that arrive there and the tensors that
recomputationCheckpoint names.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set

from torch import Tensor

from vit_ipu.simulator import popart_enums as popart
from vit_ipu.simulator.cost.liveness import Life, working_memory
from vit_ipu.simulator.cost.schedule import Schedule
from vit_ipu.simulator.cost.simulation_report import IpuAccount, SimulationReport, StageAccount, account_of_ipu
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.tracing.compile_checks import has_pipeline
from vit_ipu.simulator.tracing.graph import Graph, Kind, Operation, Value
from vit_ipu.simulator.tracing.trace import Trace

_RECOMPUTING = (int(popart.RecomputationType.Pipeline), int(popart.RecomputationType.RecomputeAll))


def simulation_report(
    trace: Trace, options: Options, optimizer_state: Optional[Mapping[str, Tensor]] = None
) -> SimulationReport:
    """Returns the account of a traced model; `optimizer_state`: tensors by PopART's name, prefix "___" parameter."""
    schedule = schedule_of(trace, options)
    stages = _Stages(trace, schedule).accounts()
    iterations = int(options.device_iterations)
    return SimulationReport(
        training=trace.is_training,
        pipelined=schedule.pipelined,
        recomputation=schedule.recomputes,
        num_forward_stages=trace.num_forward_stages,
        num_stages=schedule.num_stages,
        gradient_accumulation=int(options.Training.gradient_accumulation),
        device_iterations=iterations,
        replication_factor=int(options.replication_factor),
        cycles_per_run=schedule.num_cycles,
        cycles_per_call=schedule.num_cycles * (iterations if trace.is_training else 1),
        utilisation=schedule.utilisation,
        stages=tuple(stages),
        ipus=tuple(_ipu_accounts(trace, stages, optimizer_state or {})),
        timetable=tuple(schedule.slots()),
        schedule=schedule,
    )


def schedule_of(trace: Trace, options: Options) -> Schedule:
    """Returns the order of work that the options give a traced model.

    By default a pipeline recomputes, and nothing else does (Compiler.cpp:572-579).
    """
    pipelined = has_pipeline(trace, options)
    recomputation = options._Popart.options.get("autoRecomputation")
    return Schedule(
        stage_ipus=tuple(trace.stage_ipus),
        micro_batches=int(options.Training.gradient_accumulation if trace.is_training else options.device_iterations),
        training=trace.is_training,
        pipelined=pipelined,
        recomputes=trace.is_training and pipelined and (recomputation is None or recomputation in _RECOMPUTING),
    )


class _Place(NamedTuple):
    """The stage that makes a value or where the value arrives, and the last stage that reads the value."""

    home: int
    last: int


class _Stages:
    """Computes the accounts of the forward stages of a trace."""

    def __init__(self, trace: Trace, schedule: Schedule) -> None:
        self._trace, self._schedule = trace, schedule
        self._graph = trace.graph
        self._operations: List[List[Operation]] = [[] for _ in trace.stage_ipus]
        self._starts = [0 for _ in trace.stage_ipus]
        for index, operation in enumerate(self._graph.operations):
            if not self._operations[operation.stage]:
                self._starts[operation.stage] = index
            self._operations[operation.stage].append(operation)
        self._places = _places(self._graph)

    def accounts(self) -> List[StageAccount]:
        return [self._account(stage) for stage in range(len(self._operations))]

    def _account(self, stage: int) -> StageAccount:
        operations, count = self._operations[stage], self._schedule.stashed_micro_batches(stage)
        lives = self._lives(stage)
        kept = [life.num_bytes for life in lives if life.kept]
        saved = [life.num_bytes for life in lives if life.saved_at]
        working = working_memory(lives, [op.segment for op in operations], training=self._trace.is_training)
        forward = sum(op.flops.forward for op in operations)
        recomputed = working.with_recomputation if count else working.without_recomputation
        return StageAccount(
            stage=stage,
            ipu=self._trace.stage_ipus[stage],
            num_operations=len(operations),
            flops_forward=forward,
            flops_recompute=forward if count else 0,
            flops_backward=sum(op.flops.backward for op in operations) if self._trace.is_training else 0,
            stashed_micro_batches=count,
            tensors_stashed=len(kept) if count else 0,
            stash_bytes=count * sum(kept),
            tensors_stashed_without_recomputation=len(saved) if count else 0,
            stash_bytes_without_recomputation=count * sum(saved),
            peak_activation_bytes=max(count - 1, 0) * sum(kept) + recomputed,
            peak_activation_bytes_without_recomputation=max(count - 1, 0) * sum(saved) + working.without_recomputation,
            bytes_sent_forward=self._bytes_sent(stage, lambda value: True),
            bytes_sent_backward=self._bytes_sent(stage - 1, lambda value: value.requires_grad),
        )

    def _bytes_sent(self, stage: int, crosses: Callable[[Value], bool]) -> int:
        """Returns the bytes sent between a stage and the next stage."""
        values = self._graph.values
        passing = (number for number, place in self._places.items() if place.home <= stage < place.last)
        return sum(values[number].num_bytes for number in passing if crosses(values[number]))

    def _lives(self, stage: int) -> List[Life]:
        """Returns the lives of the values on the stage, without weights and constants."""
        operations = self._operations[stage]
        lives: Dict[int, Life] = {}
        for index, operation in enumerate(operations):
            for number in operation.inputs + operation.outputs:
                if number in self._places:
                    life = lives.setdefault(number, self._life(number, stage, index))
                    life.death = index
        for number, life in lives.items():
            if self._places[number].last > stage or number in self._graph.outputs:
                life.death = len(operations) - 1
        for saved in self._graph.saved:
            if saved.stage == stage and saved.value in lives:
                position = min(max(saved.position - self._starts[stage], 0), len(operations) - 1)
                lives[saved.value].saved_at.setdefault(operations[position].segment, position)
        return list(lives.values())

    def _life(self, number: int, stage: int, index: int) -> Life:
        value = self._graph.values[number]
        arrives = self._places[number].home < stage or value.kind == Kind.INPUT
        return Life(
            num_bytes=value.num_bytes,
            birth=0 if arrives else index,
            death=index,
            kept=arrives or (stage, number) in self._graph.checkpoints,
            has_gradient=value.requires_grad,
        )


def _places(graph: Graph) -> Dict[int, _Place]:
    """Returns the places of inputs and activations, by number of the value."""
    home: Dict[int, int] = {}
    last: Dict[int, int] = {}
    for operation in graph.operations:
        for number in operation.inputs + operation.outputs:
            if graph.values[number].kind in (Kind.INPUT, Kind.ACTIVATION):
                home.setdefault(number, operation.stage)
                last[number] = operation.stage
    return {number: _Place(home[number], last[number]) for number in home}


def _ipu_accounts(
    trace: Trace, stages: Sequence[StageAccount], optimizer_state: Mapping[str, Tensor]
) -> Iterable[IpuAccount]:
    owners = _owners(trace.graph)
    for ipu in sorted(set(trace.stage_ipus)):
        own = [value for value in trace.graph.values if owners.get(value.number) == ipu]
        parameters = [value for value in own if value.name in trace.parameters]
        names = {value.name for value in own}
        weights = {
            "num_parameters": sum(value.num_elements for value in parameters),
            "parameter_bytes": sum(value.num_bytes for value in parameters),
            "buffer_bytes": sum(value.num_bytes for value in own) - sum(value.num_bytes for value in parameters),
            "optimizer_state_bytes": _state_bytes(optimizer_state, names),
        }
        yield account_of_ipu(ipu, [stage for stage in stages if stage.ipu == ipu], weights)


def _owners(graph: Graph) -> Dict[int, int]:
    """Returns the IPU of each weight: the first IPU that reads the weight; a weight that nothing reads has none."""
    owners: Dict[int, int] = {}
    for operation in graph.operations:
        for number in operation.inputs:
            if graph.values[number].kind == Kind.WEIGHT:
                owners.setdefault(number, operation.ipu)
    return owners


def _state_bytes(state: Mapping[str, Tensor], names: Set[str]) -> int:
    """Returns the bytes of the state of the parameters with these names."""
    of_parameter: Dict[str, int] = defaultdict(int)
    for name, tensor in state.items():
        of_parameter[name.partition("___")[2]] += tensor.numel() * tensor.element_size()
    return sum(of_parameter[name] for name in names)
