"""Options from JSON, files and the environment, and back."""

from __future__ import annotations

import logging

import pytest
from simulated import TwoStages, data, options

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import machine
from vit_ipu.simulator.logs import setPopartLogLevel
from vit_ipu.simulator.poptorch_core import _validateOptions
from vit_ipu.simulator.tracing.compile_checks import uses_ipu_model

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


# ------------------------------------------------------------------- JSON, files and environment


def test_from_json_calls_setters_by_name():
    read = poptorch.Options().from_json(
        '{"deviceIterations": 2, "Training.gradientAccumulation": 8, "outputMode": "OutputMode.All",'
        ' "_Popart.set": ["saveInitializersToFile", "a.b"], "logDir": "a.b"}'
    )
    assert (read.device_iterations, read.Training.gradient_accumulation) == (2, 8)
    assert read.output_mode == poptorch.OutputMode.All
    assert read._Popart.options["saveInitializersToFile"] == "a.b"
    assert read.log_dir == "a.b"


def test_options_are_read_from_files(tmp_path):
    first, second = tmp_path / "first.conf", tmp_path / "second.conf"
    first.write_text(
        "# a comment\n deviceIterations(32)\n\nreplicationFactor(2) # two\n"
        "setExecutionStrategy(poptorch.ShardedExecution())\nTraining.gradientAccumulation(3)\n"
    )
    second.write_text("deviceIterations(4)\n")
    read = poptorch.Options().loadFromFile(str(first)).loadFromFile(str(second))
    assert (read.device_iterations, read.replication_factor, read.Training.gradient_accumulation) == (4, 2, 3)
    assert isinstance(read._execution_strategy, poptorch.ShardedExecution)


def test_a_syntax_error_in_a_file_is_reported_with_its_line(tmp_path):
    path = tmp_path / "wrong.conf"
    path.write_text("deviceIterations(1)\n\n# skipped\nlogDir('x'))\n")
    with pytest.raises(
        poptorch.ConfigFileError, match=r"SyntaxError at line 2 of wrong.conf: .*\n> options.logDir\('x'\)\)"
    ):
        poptorch.Options().loadFromFile(str(path))
    assert poptorch.ConfigFileError is poptorch.options.ConfigFileError


def test_the_environment_sets_defaults(monkeypatch):
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", '{"deviceIterations": 7}')
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "somewhere")
    made = poptorch.Options()
    assert made.device_iterations == 7
    assert made._Popart.options["cachePath"] == "somewhere"
    assert made._Popart.options["enableEngineCaching"] is True


def test_process_id_and_number_are_read_from_mpis_environment(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("MY_RANK", "2")
    made = poptorch.Options()
    assert (made.Distributed.processId, made.Distributed.numProcesses) == (3, 4)
    made.Distributed.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "MY_RANK")
    assert (made.Distributed.processId, made.Distributed.numProcesses) == (2, 4)
    made.Distributed.disable()
    assert (made.Distributed.processId, made.Distributed.numProcesses) == (0, 1)


@pytest.mark.parametrize(
    ("environment", "chosen", "uses"),
    [
        ({}, None, False),
        ({"POPTORCH_IPU_MODEL": "1"}, None, True),
        ({"POPTORCH_IPU_MODEL": "0"}, None, False),
        ({"POPTORCH_IPU_MODEL": "0", "POPTORCH_SMALL_IPU_MODEL": "1"}, None, True),
        ({"POPTORCH_IPU_MODEL": "1"}, False, False),
        ({}, True, True),
    ],
    ids=str,
)
def test_the_environment_or_an_option_selects_the_ipu_model(monkeypatch, environment, chosen, uses):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = poptorch.Options() if chosen is None else poptorch.Options().useIpuModel(chosen)
    assert uses_ipu_model(made) is uses


def test_the_ipu_model_needs_no_ipus_and_refuses_replicas_and_offline_targets():
    machine.configure(1, hardware=False)
    executor = poptorch.trainingModel(TwoStages(), options().useIpuModel(True))
    executor(*data(8))
    assert executor.isAttachedToDevice()
    assert machine.current.ipus_held == 0
    with pytest.raises(poptorch.Error, match="Replicated top level graphs are not supported on the IPU model"):
        poptorch.trainingModel(TwoStages(), options(1, 4, 2).useIpuModel(True))(*data(8))
    with pytest.raises(poptorch.Error, match="useOfflineIpuTarget not supported for the IPU model"):
        poptorch.trainingModel(TwoStages(), options().useIpuModel(True).useOfflineIpuTarget()).compile(*data(8))


def test_a_machine_without_hardware_has_no_ipu_to_acquire():
    machine.configure(16, hardware=False)
    with pytest.raises(poptorch.Error, match=r"Failed to acquire 2 IPU\(s\)\nNo IPU detected in the system"):
        poptorch.trainingModel(TwoStages(), options())(*data(8))


@pytest.mark.parametrize(
    ("level", "seen"),
    [("DEBUG", ["debug", "warning"]), ("WARN", ["warning"]), (4, []), ("OFF", [])],
)
def test_the_log_level_filters_messages(capsys, level, seen):
    from vit_ipu.simulator.logs import logger, start

    before = logger.level
    try:
        start()
        poptorch.setLogLevel(level)
        logger.debug("debug")
        logger.warning("warning")
        lines = capsys.readouterr().err.splitlines()
        assert [line.split()[-1] for line in lines] == seen
        assert all(" [poptorch] [" in line for line in lines)
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("LOUD", "Unknown log level: LOUD. Valid values are DEBUG, ERR, INFO, OFF, TRACE and WARN"),
        (9, "Invalid log level integer"),
    ],
)
def test_a_log_level_that_poptorch_lacks_is_refused(level, message):
    with pytest.raises(ValueError, match=message):
        poptorch.setLogLevel(level)


@pytest.mark.parametrize("level", ["LOUD", 3])
def test_a_log_level_that_popart_lacks_is_refused(level):
    with pytest.raises(ValueError, match="Level must be one of TRACE, .*OFF"):
        setPopartLogLevel(level)


@pytest.mark.parametrize(
    ("setter", "message"),
    [
        (lambda o: o.Jit.traceModel(False), "Do not call options.Jit.traceModel"),
        (lambda o: o.Precision.halfFloatCasting(poptorch.HalfFloatCastingBehavior.Default), "the only behaviour"),
        (lambda o: o.Precision.runningStatisticsAlwaysFloat(False), "False is the only behaviour"),
    ],
    ids=["trace", "half", "statistics"],
)
def test_deprecated_options_change_nothing_and_warn(setter, message, caplog):
    options = poptorch.Options().outputMode(poptorch.OutputMode.All)
    before = options.toDict()
    with caplog.at_level(logging.WARNING, logger="poptorch"):
        setter(options)
    assert options.toDict() == before
    assert "[Deprecated]" in caplog.text
    assert message in caplog.text


def test_options_that_are_set_are_logged_in_poptorchs_format(caplog):
    made = poptorch.Options().outputMode(poptorch.OutputMode.All)
    made._Popart.set("dotChecks", ["FINAL"]).set("enableOutlining", True).set("engineOptions", {"a": "b"})
    with caplog.at_level(logging.DEBUG, logger="poptorch"):
        _validateOptions(made.toDict())
    for line in (
        "poptorch.Options set replication_factor to value 1",
        "poptorch.Options set enableOutlining to value true",
        "poptorch.Options added FINAL to dotChecks",
        "poptorch.Options set engineOptions[a] to b",
    ):
        assert line in caplog.messages
