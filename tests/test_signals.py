"""Signals that request a stop, and text that fits on one line.

Signals that a pool of processes holds back are tested in data/test_process_pool.py.
"""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest
from other_process import run_python

from vit_ipu.errors import Interrupted
from vit_ipu.signals import (
    SCHEDULERS,
    STOPPING,
    HeldSignals,
    StopSignal,
    _DroppedSignals,
    exit_code_of,
    exit_code_of_stopped_run,
    exit_on_signals,
    ignore_in_worker,
)
from vit_ipu.text import escaped, message, reason_of, shortened, single_line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_stops_at_once(number):
    messages = []
    before = signal.getsignal(number)
    with StopSignal(messages.append) as stop:
        assert list(stop.until_stopped([1, 2])) == [1, 2]
        signal.raise_signal(number)
        assert stop.requested
        assert stop.number == number
        assert messages == []  # a print in a handler can fall into another print
        assert list(stop.until_stopped([1, 2])) == []
        name = signal.Signals(number).name
        assert messages == [f"{name}: stopping after this host step; press Ctrl-C to stop at once"]
        with pytest.raises(Interrupted):
            list(stop.raise_if_stopped([1]))
        assert len(messages) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_items_are_taken_until_the_stop_is_requested():
    with StopSignal(lambda text: None) as stop:
        taken = []
        for item in stop.until_stopped(range(10)):
            taken.append(item)
            if item == 3:
                signal.raise_signal(signal.SIGTERM)
        assert taken == [0, 1, 2, 3]


def test_outside_the_main_thread_nothing_is_requested():
    found = []

    def work():
        with StopSignal(found.append) as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert found == [False]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_other_signals_request_a_stop_and_only_ctrl_c_then_stops_at_once(number):
    with StopSignal(lambda text: None) as stop:
        for _ in range(2):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_stop_that_another_process_requests_is_told_without_a_signal():
    messages = []
    with StopSignal(messages.append) as stop:
        assert list(stop.until_stopped([1], agree=lambda flag: True)) == []
    assert messages == ["stopping after this host step; press Ctrl-C again to stop at once"]
    assert stop.number is None


# The number, the exit code of a command, and that of a run with a checkpoint; then both in a scheduler's job.
CODES = [
    (signal.SIGINT, 130, 130, 130, 130),
    (signal.SIGTERM, 143, 130, 75, 75),
    (signal.SIGHUP, 129, 129, 129, 129),
    (signal.SIGUSR1, 75, 75, 75, 75),
    (signal.SIGUSR2, 75, 75, 75, 75),
    (signal.SIGXCPU, 75, 75, 75, 75),
]


@pytest.fixture
def no_job(monkeypatch):
    for name in SCHEDULERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_job")
@pytest.mark.parametrize("codes", CODES)
def test_exit_codes_of_signals(codes, monkeypatch):
    number, command, run, command_in_job, run_in_job = codes
    assert (exit_code_of(number), exit_code_of_stopped_run(number)) == (command, run)
    for name in SCHEDULERS:
        with monkeypatch.context() as context:
            context.setenv(name, "17")
            assert (exit_code_of(number), exit_code_of_stopped_run(number)) == (command_in_job, run_in_job)
    assert exit_code_of_stopped_run(None) == 130


@pytest.mark.usefixtures("no_job")
@pytest.mark.parametrize("codes", CODES[1:])
def test_signals_end_a_command_by_system_exit(codes):
    number, code = codes[:2]
    exit_on_signals()
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(number)
    assert ended.value.code == code
    assert ended.value.signal_name == signal.Signals(number).name


def test_sighup_stays_ignored_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    exit_on_signals()
    with StopSignal(lambda text: None) as stop, HeldSignals():
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert not stop.requested


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_while_the_interpreter_ends_changes_nothing(number):
    code = (
        f"import atexit, os, sys; atexit.register(os.kill, os.getpid(), {int(number)}); sys.argv = ['vit-ipu', "
        "'--version']; from vit_ipu.__main__ import main; main()"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_whose_exception_python_drops_is_sent_again(number):
    """Python drops every exception in the removal of a weak reference, of which tracing a model makes many."""
    code = (
        "import os, signal, sys, time, weakref\n"
        "from vit_ipu.signals import exit_on_signals\n"
        "class Thing: pass\n"
        "def signalled(reference):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    time.sleep(1)\n"
        "exit_on_signals()\n"
        "thing = Thing()\n"
        "reference = weakref.ref(thing, signalled)\n"
        "try:\n"
        "    del thing\n"
        "    print('dropped', flush=True)\n"
        "    time.sleep(60)\n"
        "except (KeyboardInterrupt, SystemExit) as error:\n"
        "    print(type(error).__name__)\n"
    )
    done = run_python(code, timeout=50)
    name = "_CtrlC" if number == signal.SIGINT else "Terminated"
    assert (done.stdout.split(), done.stderr) == (["dropped", name], "")


def test_an_exception_that_no_signal_raised_is_not_sent_again(monkeypatch):
    told = []
    hook = _DroppedSignals(told.append)
    monkeypatch.setattr(threading, "Timer", None)
    hook(SimpleNamespace(exc_value=KeyboardInterrupt()))
    assert len(told) == 1


def test_workers_leave_signals_to_the_main_process():
    ignore_in_worker()
    for number in STOPPING:
        signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN


def test_text_is_shortened_and_escaped_for_one_line():
    assert single_line(" a\n b\t\tc ") == "a b c"
    assert message("a\x1b[31mb\n") == "a\\x1b[31mb\\n"
    assert escaped("a\x1bb\nä") == "a\\x1bb\\nä"
    assert shortened("abcdef", 3) == "abc..."
    assert shortened("abc", 3) == "abc"
    assert reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert reason_of(ValueError("two\nlines")) == "two lines"
    assert reason_of(ValueError()) == "ValueError"
