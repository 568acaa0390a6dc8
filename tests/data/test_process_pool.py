"""Tasks in processes: results, errors, and signals that are held back until they do no harm."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from other_process import run_python

from vit_ipu.data.process_pool import processes
from vit_ipu.errors import RunFailed


def square(number):
    return number * number


def slow(seconds):
    time.sleep(seconds)
    return seconds


def fail(number):
    if number == 3:
        raise ValueError("three")
    time.sleep(0.01)
    return number


def die():
    os._exit(9)


def die_alone():
    with processes(1, remedy=": buy some") as pool:
        pool.in_order(die, [()])


def handlers(*_):
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def add(shared, number):
    return shared + number


@pytest.mark.parametrize("count", [1, 3])
def test_results_belong_to_their_tasks(count):
    with processes(count) as pool:
        assert pool.in_order(square, [(number,) for number in range(20)]) == [number**2 for number in range(20)]
        assert dict(pool.finished(square, [(2,), (5,)])) == {0: 4, 1: 25}
        assert pool.in_order(square, []) == []


def test_results_come_as_they_finish_and_poll_is_called_meanwhile():
    polls = []
    with processes(2) as pool:
        found = list(pool.finished(slow, [(1.2,), (0.01,)], lambda: polls.append(1)))
    assert found == [(1, 0.01), (0, 1.2)]
    assert len(polls) >= 3


def test_every_process_starts_with_the_shared_value():
    with processes(2, shared=7) as pool:
        assert pool.in_order(add, [(n,) for n in range(4)]) == [7, 8, 9, 10]


def test_a_failed_task_and_a_killed_process_are_errors():
    with pytest.raises(ValueError, match="three"), processes(2) as pool:
        pool.in_order(fail, [(number,) for number in range(50)])
    with pytest.raises(RunFailed, match="^a process was killed, perhaps because memory ran out: buy some$"):
        die_alone()


def test_processes_ignore_ctrl_c_and_end_on_sigterm():
    with processes(1) as pool:
        assert pool.in_order(handlers, [()]) == [[signal.SIG_IGN, signal.SIG_DFL]]


class Terminated(Exception):
    """The exception that the handler of SIGTERM raises in these tests."""


def terminate(number, frame):
    raise Terminated


@pytest.fixture
def terminated():
    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("terminated")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_waits_until_it_does_no_harm(number, error):
    reached, before = [], signal.getsignal(signal.SIGINT)

    def interrupt_each():
        with processes(2) as pool:
            for done, _ in pool.finished(slow, [(0.01,)] * 40):
                signal.raise_signal(number)
                reached.append(done)  # the signal does not interrupt this block

    with pytest.raises(error):
        interrupt_each()
    assert 0 < len(reached) < 40
    assert signal.getsignal(signal.SIGTERM) is terminate
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("terminated")
def test_a_signal_after_the_last_task_is_raised_at_the_end():
    with pytest.raises(Terminated), processes(1):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("terminated")
def test_a_signal_whose_handler_returns_does_not_hide_another():
    noted = []

    def interrupt_before_the_end():
        with processes(1) as pool:
            list(pool.finished(square, [(1,)], lambda: signal.raise_signal(signal.SIGINT)))
            assert noted == []
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)

    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        with pytest.raises(Terminated):
            interrupt_before_the_end()
    finally:
        signal.signal(signal.SIGINT, before)
    assert noted == [signal.SIGINT] * 3


@pytest.mark.usefixtures("terminated")
def test_other_threads_hold_back_no_signals():
    found = []

    def work():
        with processes(1) as pool:
            found.extend([*pool.in_order(square, [(3,)]), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found == [9, terminate]


STARVED = """
import multiprocessing, os, resource
from test_process_pool import square
from vit_ipu.data.process_pool import processes
from vit_ipu.errors import RunFailed
open_files = len(os.listdir("/proc/self/fd"))
for more in (4, 20):
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + more, 4096))
    try:
        with processes(20, remedy=": try fewer") as pool:
            pool.in_order(square, [(3,)])
    except RunFailed as error:
        print(error, multiprocessing.active_children())
"""


def test_a_process_that_cannot_be_started_is_an_error_and_leaves_no_process_behind():
    done = run_python(STARVED)
    line = "cannot start 20 processes: Too many open files: try fewer []\n"
    assert (done.stdout, done.stderr) == (2 * line, "")


def test_processes_ignore_the_other_stopping_signals():
    with processes(1) as pool:
        assert pool.in_order(others, [()]) == [[signal.SIG_IGN] * 4]


def others():
    return [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)]
