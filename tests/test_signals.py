"""Signals that request a stop, and text that fits on one line.

Signals that a pool of processes holds back are tested in data/test_process_pool.py.
"""

from __future__ import annotations

import signal
import threading

import pytest

from vit_ipu.errors import Interrupted
from vit_ipu.signals import StopSignal, exit_on_sigterm, ignore_in_worker
from vit_ipu.text import escaped, printable, reason_of, shortened, single_line


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_stops_at_once(number, handlers):
    messages = []
    with StopSignal(messages.append) as stop:
        assert list(stop.until_stopped([1, 2])) == [1, 2]
        signal.raise_signal(number)
        assert stop.requested
        assert messages == ["stopping after this host step; press Ctrl-C again to stop at once"]
        assert list(stop.until_stopped([1, 2])) == []
        with pytest.raises(Interrupted):
            list(stop.raise_if_stopped([1]))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == handlers[number]


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


def test_sigterm_raises_system_exit_143():
    exit_on_sigterm()
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_workers_leave_signals_to_the_main_process():
    ignore_in_worker()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN


def test_text_is_shortened_and_escaped_for_one_line():
    assert single_line(" a\n b\t\tc ") == "a b c"
    assert printable("a\x1b[31mb\n") == "a?[31mb?"
    assert escaped("a\x1bb\nä") == "a\\x1bb\\nä"
    assert shortened("abcdef", 3) == "abc..."
    assert shortened("abc", 3) == "abc"
    assert reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert reason_of(ValueError("two\nlines")) == "two lines"
    assert reason_of(ValueError()) == "ValueError"
