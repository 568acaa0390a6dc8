"""Signals: stop the main process at a safe moment; worker processes leave signals to the main process.

An exception from a signal handler can be raised between any two instructions; inside a lock's own code it would leave
the lock locked. So signals only set a flag, or are held back, during work that they could damage. No handler prints: a
handler can run in the middle of a print, and Python refuses a print inside a print.

Exit codes: 130 for Ctrl-C; 75 ("requeue") for signals by which a scheduler takes a machine back; else 128 + number.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, TypeVar

from vit_ipu.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a program that Ctrl-C ended, by the convention of shells."""
REQUEUE = 75
"""Exit code that asks a scheduler to start the job again: EX_TEMPFAIL of sysexits.h."""
SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID", "FLUX_JOB_ID", "_CONDOR_JOB_AD")
"""Environment variables that Slurm, PBS, LSF, Grid Engine, Flux and HTCondor set in a job."""

_SENT_AGAIN_SECONDS = 0.05
Item = TypeVar("Item")


def exit_code_of(number: int) -> int:
    """Returns the exit code of a program that the signal ended.

    SIGUSR1, SIGUSR2 and SIGXCPU are warnings of schedulers; SIGTERM is one only in a scheduler's job.
    """
    if number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU) or (number == signal.SIGTERM and _in_job()):
        return REQUEUE
    return 128 + number


def exit_code_of_stopped_run(number: Optional[int]) -> int:
    """Returns the exit code of a run that stopped with a checkpoint; None: another host process received the signal.

    SIGTERM outside a scheduler's job stops a run as Ctrl-C does.
    """
    if number is None or (number == signal.SIGTERM and not _in_job()):
        return INTERRUPTED
    return exit_code_of(number)


def _in_job() -> bool:
    return any(os.environ.get(name) for name in SCHEDULERS)


class Terminated(SystemExit):
    """Raised by a signal that ends the program; the exit code is that of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(exit_code_of(number))
        self.number = number
        self.signal_name = signal.Signals(number).name


class _CtrlC(KeyboardInterrupt):
    """Raised by SIGINT, or by a signal that stops a run at once; sent again, as SIGINT, if Python drops it."""


def exit_on_signals() -> None:
    """Makes every stopping signal end the program by an exception, so that unfinished files are removed.

    SIGHUP stays ignored if it is ignored, as under nohup.
    """
    for number in _heard():
        signal.signal(number, _interrupt if number == signal.SIGINT else _terminate)
    if not isinstance(sys.unraisablehook, _DroppedSignals):
        sys.unraisablehook = _DroppedSignals(sys.unraisablehook)


class _DroppedSignals:
    """Hook for exceptions that Python drops, as in the removal of a weak reference: sends a dropped signal again."""

    def __init__(self, others: Callable[[Any], Any]) -> None:
        """`others` is the hook for all other exceptions."""
        self._others = others

    def __call__(self, dropped: Any) -> None:
        error = dropped.exc_value
        if isinstance(error, (Terminated, _CtrlC)):
            number = error.number if isinstance(error, Terminated) else signal.SIGINT
            timer = threading.Timer(_SENT_AGAIN_SECONDS, os.kill, (os.getpid(), number))  # a raise here is dropped too
            timer.daemon = True
            timer.start()
        else:
            self._others(dropped)


def ignore_while_exiting() -> None:
    """Ignores stopping signals once the exit code is known; in the interpreter's end they print tracebacks or kill."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: Optional[FrameType]) -> None:
    raise _CtrlC


def _terminate(number: int, frame: Optional[FrameType]) -> None:
    raise Terminated(number)


def _heard() -> Tuple[int, ...]:
    """Lists the stopping signals, without SIGHUP if it is ignored: nohup starts programs so."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in STOPPING if not (ignored and number == signal.SIGHUP))


# ------------------------------------------------------------------------------ in worker processes


def ignore_in_worker() -> None:
    """Ignores all stopping signals: terminals and schedulers send them to all processes; the main process decides."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """Ends this worker process at once if its parent process ends, even by SIGKILL."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])  # a pipe, which the end of the parent closes
        os._exit(1)


# ------------------------------------------------------------------------------ in the main process


class StopSignal:
    """Context manager: a stopping signal requests a stop after the current host step.

    Ctrl-C after another signal, or a second SIGTERM, stops at once by KeyboardInterrupt.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        """Sets up the handlers' state; `notify` shows the user that a stop was requested."""
        self.number: Optional[int] = None
        """The signal that requested a stop; None if no signal did."""
        self._notify = notify
        self._told = False
        self._previous: Dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.number is not None

    def __enter__(self) -> StopSignal:
        for number in _heard():
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # only the main thread may set handlers; another thread is stopped by its owner
                break
        return self

    def __exit__(self, *exc: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def until_stopped(self, items: Iterable[Item], agree: Callable[[bool], bool] = bool) -> Iterator[Item]:
        """Yields the items until a stop is requested.

        `agree` makes several processes stop together: it tells whether a stop is requested in any of them.
        """
        for item in items:
            if agree(self.requested):
                self._tell()
                return
            yield item

    def raise_if_stopped(self, items: Iterable[Item], agree: Callable[[bool], bool] = bool) -> Iterator[Item]:
        """Yields the items. Raises Interrupted once a stop is requested; `agree` as in `until_stopped`."""
        for item in items:
            if agree(self.requested):
                self._tell()
                raise Interrupted
            yield item

    def _tell(self) -> None:
        """Tells the user once, and not in the handler, that the run stops."""
        if not self._told:
            self._told = True
            name, again = "", " again"
            if self.number is not None:
                name, again = f"{signal.Signals(self.number).name}: ", ""
            self._notify(f"{name}stopping after this host step; press Ctrl-C{again} to stop at once")

    def _request(self, number: int, frame: Optional[FrameType]) -> None:
        if self.requested and (number == signal.SIGINT or number == self.number == signal.SIGTERM):
            raise _CtrlC
        self.number = self.number or number


class HeldSignals:
    """Context manager: holds back stopping signals until `let_through`, or until the body ends without an error."""

    def __init__(self) -> None:
        self._previous: Dict[int, Any] = {}
        self._held: List[int] = []

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():  # other threads never receive signals
            for number in _heard():
                self._previous[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            if exc[0] is None:
                self.let_through()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def let_through(self) -> None:
        """Delivers the signals that have arrived to the handlers that were installed before."""
        while self._held:
            number = self._held.pop(0)
            signal.signal(number, self._previous[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self._hold)

    def _hold(self, number: int, frame: Any) -> None:
        self._held.append(number)
