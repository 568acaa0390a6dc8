"""Threads whose end is awaited again after Ctrl-C has interrupted the waiting."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from vit_ipu.threads import AwaitedThread


def test_waiting_for_a_thread_can_be_interrupted_and_repeated():
    ended = []

    def work(seconds):
        time.sleep(seconds)
        ended.append(True)

    thread = AwaitedThread(work, 1.5)
    thread.start()
    interrupt = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        thread.join()
    assert ended == []
    thread.join(0.01)
    assert ended == []
    thread.join()
    assert ended == [True]
    assert not thread.is_alive()


def test_a_thread_that_fails_has_ended(monkeypatch):
    errors = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_type))
    thread = AwaitedThread({}.__getitem__, "missing")
    thread.start()
    thread.join(30)
    assert (errors, thread.is_alive()) == ([KeyError], False)
