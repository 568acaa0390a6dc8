"""Starts several instances of a program on this host, as Graphcore's poprun does, each on its own simulated IPUs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from typing import Dict, List, Optional, Sequence


def environment_of(instance: int, *, instances: int, replicas: int, ipus_per_replica: int, port: int) -> Dict[str, str]:
    """Returns the environment variables of an instance: those of poprun, and the address where gloo meets.

    Raises ValueError if a number is less than 1 or the replicas do not divide evenly.
    """
    for option, number in (("--num-instances", instances), ("--ipus-per-replica", ipus_per_replica)):
        if number < 1:
            raise ValueError(f"{option} {number}: give at least 1")
    if replicas < instances or replicas % instances:
        raise ValueError(f"--num-replicas {replicas} do not divide over --num-instances {instances}: give a multiple")
    local = replicas // instances
    return {
        "POPDIST_NUM_TOTAL_REPLICAS": str(replicas),
        "POPDIST_NUM_LOCAL_REPLICAS": str(local),
        "POPDIST_NUM_IPUS_PER_REPLICA": str(ipus_per_replica),
        "POPDIST_REPLICA_INDEX_OFFSET": str(instance * local),
        "POPDIST_LOCAL_INSTANCE_INDEX": str(instance),
        "POPDIST_UNIFORM_REPLICAS_PER_INSTANCE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_instances(
    command: Sequence[str], *, instances: int, replicas: Optional[int] = None, ipus_per_replica: int = 1
) -> int:
    """Runs `command` once per instance and returns the first exit code that is not 0; the others are then stopped."""
    port = _free_port()
    processes: List[subprocess.Popen[bytes]] = []
    try:
        for instance in range(instances):
            own = environment_of(
                instance,
                instances=instances,
                replicas=instances if replicas is None else replicas,
                ipus_per_replica=ipus_per_replica,
                port=port,
            )
            processes.append(subprocess.Popen(list(command), env=dict(os.environ, **own)))
        return _first_failure(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    running = list(processes)
    while running:
        for process in list(running):
            try:
                code = process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            except KeyboardInterrupt:
                return 128 + signal.SIGINT
            running.remove(process)
            if code:
                return code if code > 0 else 128 - code
    return 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
