"""A process notices that another one of its run has ended, though it computes, and ends itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

# Each process waits in a loop, as for its GPU; how the last one ends is an argument.
PROGRAM = """
import os, signal, sys, time
from datetime import timedelta
import torch.distributed as dist
from vit_ipu.backends.native.lifeline import Lifeline
dist.init_process_group("gloo", init_method="env://", timeout=timedelta(seconds=60))
lifeline = Lifeline(dist.group.WORLD, grace=float(sys.argv[2]))
dist.barrier()
if dist.get_rank() == dist.get_world_size() - 1:
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "failed":
        sys.exit(3)
    lifeline.say_goodbye()
    print("goodbye")
elif sys.argv[1] == "done":
    lifeline.say_goodbye()
    print("goodbye", lifeline.is_lost.is_set())
else:
    began = time.monotonic()
    while not lifeline.is_lost.is_set() and time.monotonic() - began < 50:
        time.sleep(0.01)
    print("lost", lifeline.is_lost.is_set(), flush=True)
    if sys.argv[3] == "stuck":
        time.sleep(50)
    sys.exit(4)
"""


def launch(count, *arguments):
    """Starts processes; returns their exit codes and what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = dict(os.environ, WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=dict(environment, RANK=str(rank)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    printed = [process.communicate(timeout=100)[0].strip() for process in started]
    return [process.returncode for process in started], printed


@pytest.mark.parametrize(("end", "code"), [("killed", -9), ("failed", 3)])
@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_of_a_process_is_noticed_by_all(end, code, count):
    codes, printed = launch(count, end, "20", "ends")
    assert codes == [4] * (count - 1) + [code]
    assert printed == ["lost True"] * (count - 1) + [""]


def test_a_process_that_cannot_end_by_itself_is_ended():
    codes, printed = launch(2, "killed", "0.5", "stuck")
    assert codes == [1, -9]
    assert printed[0] == "lost True"


def test_processes_that_end_together_lose_none():
    assert launch(3, "done", "20", "ends") == ([0, 0, 0], ["goodbye False", "goodbye False", "goodbye"])
