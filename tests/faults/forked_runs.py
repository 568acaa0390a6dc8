"""Starts `vit-ipu` many times: a server process imports everything once, and forks a real process for each run.

The server reads a request as one line of JSON on stdin and answers with one line on stdout: to a start with the process
id, to a wait with the exit status, or null if the process has not ended in time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

TESTS = Path(__file__).parent.parent
END = "\n"
"""The request that ends the server."""
STRAY_SECONDS = 15.0
"""How long a worker process may outlive its killed main process."""


class Ended(NamedTuple):
    """End of a run: exit code (negative: the signal that killed it), stdout and stderr."""

    code: int
    out: str
    err: str


class ForkedRuns:
    """Starts runs of `vit-ipu` in forked processes, each with a session of its own, so that workers can be found."""

    def __init__(self, cache: Path) -> None:
        """Starts the server; the runs share a folder of caches."""
        environment = dict(os.environ, OMP_NUM_THREADS="1", XDG_CACHE_HOME=str(cache))
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS), str(TESTS / "faults")])
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._folders: Dict[int, Path] = {}

    def start(
        self,
        folder: Path,
        arguments: Sequence[Any],
        *,
        fault: Optional[Sequence[Any]] = None,
        evaluated_batches: Optional[int] = None,
        largest_file: Optional[int] = None,
        names: Optional[Path] = None,
    ) -> int:
        """Starts `vit-ipu ARGUMENTS` in `folder` and returns the process id.

        `fault`: the fields of a `Fault` of the file operations below folder/run. `evaluated_batches`: the process kills
        itself after so many batches of an evaluation. `largest_file`: the bytes that no file can exceed. `names`: a
        file for the names of the file operations.
        """
        request = {"folder": str(folder), "arguments": [str(argument) for argument in arguments]}
        request.update(fault=fault, evaluated_batches=evaluated_batches, largest_file=largest_file)
        request["names"] = names and str(names)
        pid = self._ask(request)
        self._folders[pid] = folder
        while _session(pid) != pid and _is_living(pid):  # until then its process group cannot be killed
            time.sleep(0.001)
        return pid

    def wait(self, pid: int, seconds: float = 300.0) -> Ended:
        """Waits for a process. Fails the test, and kills the process, if it does not end."""
        code = self._ask({"pid": pid, "seconds": seconds})
        if code is None:
            os.killpg(pid, signal.SIGKILL)
            self._ask({"pid": pid, "seconds": 10.0})
        out, err = ((self._folders[pid] / f"{pid}.{name}").read_text(errors="replace") for name in ("out", "err"))
        assert code is not None, f"the process did not end within {seconds:.0f} s: {out} {err}"
        return Ended(code, out, err)

    def run(self, folder: Path, arguments: Sequence[Any], **options: Any) -> Ended:
        return self.wait(self.start(folder, arguments, **options))

    def strays(self) -> List[int]:
        """Returns the processes of ended runs that are still there after some seconds."""
        deadline = time.monotonic() + STRAY_SECONDS
        while True:
            found = [pid for pid in _living() if _session(pid) in self._folders]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def close(self) -> None:
        for pid in _living():
            if _session(pid) in self._folders:
                os.kill(pid, signal.SIGKILL)
        self._server.communicate(END, timeout=30)  # a forked process of the tests may hold stdin open

    def _ask(self, request: Dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _living() -> List[int]:
    """Returns all processes but those that only wait to be noticed by their parent."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_living(pid)]


def _is_living(pid: int) -> bool:
    return _fields(pid)[0] not in "ZX"


def _session(pid: int) -> int:
    return int(_fields(pid)[3])


def _fields(pid: int) -> List[str]:
    """Returns state, parent, group, session, ... of a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return ["X", "0", "0", "0"]


# --------------------------------------------------------------------------------------- the server


def serve() -> None:
    """Imports what runs need and draws once, so that each run need not; then answers requests."""
    import torch

    from vit_ipu import evaluate, predict, simulator, train  # noqa: F401
    from vit_ipu.backends.native import backend  # noqa: F401
    from vit_ipu.report import page  # noqa: F401
    from vit_ipu.report.curves import curves_svg

    curves_svg([{"update": 1, "loss": 1.0, "learning_rate": 1.0, "images_per_second": 1.0}])
    torch.set_num_threads(1)
    for line in iter(sys.stdin.readline, END):
        if not line:  # the tests were killed
            return
        request = json.loads(line)
        if "pid" in request:
            _answer(_wait(**request))
            continue
        pid = os.fork()
        if pid == 0:
            _run(**request)
            return
        _answer(pid)


def _answer(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _wait(pid: int, seconds: float) -> Optional[int]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.005)
    return None


def _run(
    folder: str,
    arguments: List[str],
    fault: Optional[List[Any]],
    evaluated_batches: Optional[int],
    largest_file: Optional[int],
    names: Optional[str],
) -> None:
    """Runs `vit-ipu` in the forked process; the exit of the interpreter is that of any run."""
    from file_operations import Fault, watched

    from vit_ipu.__main__ import main

    os.setsid()
    os.chdir(folder)
    for descriptor, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", 0), (2, "err", 0)):
        path = name if descriptor == 0 else f"{os.getpid()}.{name}"
        opened = os.open(path, flags or os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    if evaluated_batches is not None:
        _kill_in_evaluation(evaluated_batches)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["vit-ipu", *arguments]
    if fault is None and names is None:
        main()
    with watched("run", Fault(*fault) if fault else None) as operations:
        try:
            main()
        finally:
            if names is not None:
                Path(names).write_text(json.dumps(operations.names))


def _kill_in_evaluation(batches: int) -> None:
    """Makes the process kill itself when an evaluation has had so many batches."""
    from vit_ipu.runs import logger

    original = logger.evaluate_batches

    def counted(loader: Any) -> Any:
        for number, batch in enumerate(loader):
            if number == batches:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    logger.evaluate_batches = lambda backend, loader, **loss: original(  # type: ignore[assignment]
        backend, counted(loader), **loss
    )


if __name__ == "__main__":
    serve()
