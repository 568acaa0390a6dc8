"""poptorch.Options (python/options.py:1146-1913) and poptorch.Attribute.

Environment: POPTORCH_CACHE_DIR and POPTORCH_DEFAULT_OPTIONS are read here, POPTORCH_IPU_MODEL and
POPTORCH_SMALL_IPU_MODEL by tracing/compile_checks.py, POPTORCH_LOG_LEVEL by logs.py. The simulator compiles nothing
and shares nothing with other processes, so POPTORCH_WAIT_FOR_IPU, POPTORCH_IPU_MODEL_VERSION,
POPTORCH_EXPORT_PROTO_FILE and PVTI_OPTIONS have no effect; POPLAR_ENGINE_OPTIONS only makes enableProfiling warn.
"""

from __future__ import annotations

import copy
import os
from typing import Any, Dict, List, Optional

import torch

from vit_ipu.simulator import enums
from vit_ipu.simulator import popart_enums as popart
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.options.groups import (
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TensorLocationOptions,
    _TrainingOptions,
)
from vit_ipu.simulator.options.strategies import (
    PipelinedExecution,
    _IExecutionStrategy,
)
from vit_ipu.simulator.options.text import call_setters, run_lines
from vit_ipu.simulator.options.values import OptionsDict


class Attribute:
    """A context manager that gives operations PopART attributes; the attributes do not change the computation."""

    _current_attrs: Dict[str, Dict[str, Any]] = {}

    def __init__(self, **kwargs: Dict[str, Any]) -> None:
        self._kwargs = kwargs
        self._saved: Dict[str, Dict[str, Any]] = {}

    def __enter__(self) -> None:
        self._saved = copy.deepcopy(Attribute._current_attrs)
        for name, values in self._kwargs.items():
            Attribute._current_attrs.setdefault(name, {}).update(values)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        Attribute._current_attrs = self._saved


class Options(OptionsDict):
    """The options of a training or inference model. Every setter returns the object, so that calls chain."""

    def __init__(self) -> None:
        self._jit = _JitOptions()
        self._popart = _PopartOptions()
        self._precision = _PrecisionOptions(self._popart)
        self._training = _TrainingOptions(self._popart)
        self._distributed = _DistributedOptions()
        self._tensor_locations = _TensorLocationOptions()
        self._execution_strategy: _IExecutionStrategy = PipelinedExecution()
        self._source_location_excludes = ["install/poptorch", "site-packages/torch", "site-packages/poptorch"]
        self._show_compilation_progress_bar = True
        self._relax_optimizer_checks = False
        self._module_namescope_enabled = True
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=enums.CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=enums.OutputMode.Default.value,
            output_return_period=1,
            connection_type=enums.ConnectionType.Always.value,
            sync_pattern=enums.SyncPattern.Full.value,
            available_memory_proportion={},
        )
        cache = os.environ.get("POPTORCH_CACHE_DIR", "")
        if cache:
            logger.info("POPTORCH_CACHE_DIR is set: setting cache path to %s", cache)
            self.enableExecutableCaching(cache)
        self.from_json(os.environ.get("POPTORCH_DEFAULT_OPTIONS", "{}"))

    # ------------------------------------------------------------------------------------- the parts

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        return self._tensor_locations

    @property
    def Distributed(self) -> _DistributedOptions:
        return self._distributed

    @property
    def Jit(self) -> _JitOptions:
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        return self._precision

    @property
    def Training(self) -> _TrainingOptions:
        return self._training

    @property
    def _Popart(self) -> _PopartOptions:
        return self._popart

    # ----------------------------------------------------------------------------- batches and IPUs

    def deviceIterations(self, device_iterations: int) -> Options:
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor: int) -> Options:
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: enums.CommGroupType) -> Options:
        if input_group_type == enums.CommGroupType.NoGrouping:
            input_group_size, input_group_type = 1, enums.CommGroupType.Consecutive
        if input_group_type == enums.CommGroupType.All:
            raise ValueError("input_group_type cannot be All")
        if self.replication_factor < input_group_size:
            raise ValueError("input_group_size cannot be larger than replication_factor")
        if self.replication_factor % input_group_size != 0:
            raise ValueError("input_group_size must be a factor of replication_factor")
        self.set(input_group_size=input_group_size, input_cgt=input_group_type)
        return self

    def setExecutionStrategy(self, strategy: _IExecutionStrategy) -> Options:
        assert isinstance(strategy, _IExecutionStrategy)
        self._execution_strategy = strategy
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> Options:
        by_ipu = {}
        for key, proportion in available_memory_proportion.items():
            assert key.startswith("IPU"), (
                'Available memory proportions are expected to be in a dictionary of {"IPU0": 0.5} where the 0 in '
                f"IPU is the index of the IPU. Invalid key: {key}"
            )
            by_ipu[int(key[3:])] = proportion
        self.createOrSet(available_memory_proportion=by_ipu)
        return self

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> Options:
        self._Popart.set("updatableNamedBuffers", buffers)
        return self

    # ---------------------------------------------------------------------------------------- outputs

    def outputMode(self, output_mode: enums.OutputMode, output_return_period: Optional[int] = None) -> Options:
        assert isinstance(output_mode, enums.OutputMode)
        if output_mode == enums.OutputMode.EveryN:
            valid = output_return_period is not None and output_return_period > 0
            assert valid, "EveryN anchor must have output_return_period set to valid positive integer"
        elif output_return_period:
            logger.info("Anchor return period argument ignored with output_mode set to %s", output_mode)
        self.set(output_mode=output_mode.value, output_return_period=output_return_period or 1)
        return self

    def defaultOutputMode(self) -> bool:
        return bool(self.output_mode == enums.OutputMode.Default)

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[enums.OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        period = output_return_period if output_mode == enums.OutputMode.EveryN else 1
        self.anchored_tensors[short_name] = [long_name, output_mode is None, output_mode, period]

    # ---------------------------------------------------------------------------------------- devices

    def connectionType(self, connection_type: enums.ConnectionType) -> Options:
        assert isinstance(connection_type, enums.ConnectionType)
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: enums.SyncPattern) -> Options:
        assert isinstance(sync_pattern, enums.SyncPattern)
        self.set(sync_pattern=sync_pattern.value)
        return self

    def useIpuId(self, ipu_id: int) -> Options:
        assert isinstance(ipu_id, int)
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useIpuModel(self, use_model: bool) -> Options:
        self.createOrSet(use_model=use_model)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        self.connectionType(enums.ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    # ------------------------------------------------------------------------------ logs and the rest

    def randomSeed(self, random_seed: int) -> Options:
        assert isinstance(random_seed, int)
        torch.manual_seed(random_seed)
        self.createOrSet(random_seed=random_seed)
        return self

    def enableExecutableCaching(self, path: Optional[str]) -> Options:
        if path is not None:
            self._Popart.set("cachePath", path)
        self._Popart.set("enableEngineCaching", path is not None)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        modes = popart.SyntheticDataMode
        self._Popart.set("syntheticDataMode", int(modes.RandomNormal if enabled else modes.Off))
        return self

    def enableStableNorm(self, enabled: bool) -> Options:
        self._Popart.set("enableStableNorm", enabled)
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> Options:
        given = os.environ.get("POPLAR_ENGINE_OPTIONS", "")
        if any(name in given for name in ("debug.allowOutOfMemory", "autoReport.directory", "autoReport.all")):
            logger.warning(
                "Profiling setting overridden by environment variable. Check content of POPLAR_ENGINE_OPTIONS."
            )
        options = dict(self._Popart.options.get("engineOptions", {}))
        options.update(
            {
                "debug.allowOutOfMemory": "true",
                "autoReport.directory": profile_dir or ".",
                "autoReport.all": "true",
            }
        )
        self._Popart.setEngineOptions(options)
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        self._Popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def logDir(self, log_dir: str) -> Options:
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: Optional[int]) -> Options:
        self.set(max_repeat_logs=(1 << 64) - 1 if max_lines is None else max_lines)
        return self

    def modelName(self, name: str) -> Options:
        self.createOrSet(model_name=name)
        return self

    def sourceLocationExcludes(self, excludes: List[str]) -> Options:
        self._source_location_excludes = excludes
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        self._source_location_excludes = self._source_location_excludes + list(excludes)
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        self._show_compilation_progress_bar = show
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        self._relax_optimizer_checks = relax
        return self

    def disableModuleNamescope(self) -> Options:
        self._module_namescope_enabled = False
        return self

    # ------------------------------------------------------------------------------ to and from text

    def from_json(self, string: str) -> Options:
        """Calls each setter that a JSON object names with its value; a list gives several arguments."""
        call_setters(self, string)
        return self

    def loadFromFile(self, filepath: str) -> Options:
        """Calls the setters in a file, one per line, such as `Training.gradientAccumulation(4)`.

        The lines are run as Python. Raises ConfigFileError if a line is not valid Python.
        """
        run_lines(self, filepath)
        return self

    def toDict(self) -> Dict[str, Any]:
        assert not self.defaultOutputMode(), "An output mode must be picked before serialisation"
        out = self._execution_strategy.backendOptions()
        out.update(self._popart.options)
        out = self.update(out)
        for part in (self._training, self._distributed, self._tensor_locations):
            out = part.update(out)
        return out

    def clone(self) -> Options:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        groups = sorted(name for name in dir(type(self)) if isinstance(getattr(type(self), name), property))
        shown = list(self._values.items()) + [(name, getattr(self, name)) for name in groups]
        options = ", ".join(f"{name}={value!r}" for name, value in shown)
        return f"{type(self).__name__}({options})"
