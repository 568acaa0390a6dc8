"""What PopTorch would refuse in a model or compute differently, and the line of the model's source that asks for it."""

from __future__ import annotations

import os
import sys
import sysconfig
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import nn

from vit_ipu.simulator.errors import Error

_LONGEST_LOOP = 100
"""Times that a line may repeat a refused operation whose result decides whether the line is repeated."""
ITEM = "aten::item"
"""PopTorch's name for reading a tensor's value in Python, which torch's dispatcher calls aten::_local_scalar_dense."""


class Verdict(Enum):
    """PopTorch's treatment of what a finding is about."""

    REFUSED = "refused"
    DIFFERENT = "different"
    """PopTorch accepts it, and an IPU computes something else than PyTorch."""
    UNKNOWN = "unknown"


class Place(NamedTuple):
    """A line of the model's source, and the module that was running, by its path in the model and its class."""

    file: Optional[str] = None
    line: Optional[int] = None
    function: Optional[str] = None
    module: Optional[str] = None
    module_class: Optional[str] = None


@dataclass
class Finding:
    """One thing that PopTorch refuses or changes, at one place.

    `operation` is PopTorch's name, as in "aten::erfinv", or a function of torch; `function` is the function of torch
    that the model calls, or "". `modules` are the paths of all modules that reach the place, and `count` is how often.
    """

    verdict: Verdict
    operation: str
    function: str
    message: str
    place: Place
    modules: List[str]
    count: int = 1


class Unfinished(Exception):
    """Raised where a forward pass cannot continue, because a refused operation's result is not known."""


class Findings:
    """Collects findings while `model` is traced; the same finding at the same line is counted, not repeated."""

    def __init__(self, model: nn.Module, outermost: CodeType) -> None:
        """`outermost` is the code of the function that runs the model."""
        self._outermost = outermost
        self._names = {id(module): name for name, module in model.named_modules()}
        self._is_muted = False
        self._found: Dict[Tuple[object, ...], Finding] = {}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found.values())

    def refuse(self, refused: Exception, operation: str, function: str = "") -> None:
        """Adds what PopTorch raises at the line of the model that is running."""
        self.add(Verdict.REFUSED, operation, function, message_of(refused))

    def add(self, verdict: Verdict, operation: str, function: str, message: str, place: Optional[Place] = None) -> None:
        """Adds a finding; without `place`, at the line of the model that is running.

        Raises Unfinished if one line repeats a refused operation without end.
        """
        if self._is_muted:
            return
        place = self.running_place() if place is None else place
        module = place.module if place.file is None and place.module_class is not None else None
        key = (verdict, operation, message, place.file, place.line, module)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = Finding(verdict, operation, function, message, place, [])
        else:
            found.count += 1
        if place.module is not None and place.module not in found.modules:
            found.modules.append(place.module)
        if found.count > _LONGEST_LOOP * max(len(found.modules), 1) and operation == ITEM:
            raise Unfinished("a loop that waits for a value of a tensor has no end while the model is traced")

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Adds nothing inside the `with` block, in which a refused function gets its result."""
        before, self._is_muted = self._is_muted, True
        try:
            yield
        finally:
            self._is_muted = before

    def running_place(self) -> Place:
        """Returns the line of the model that is running, which called torch or PopTorch."""
        return self._place([(frame, frame.f_lineno) for frame in _frames(sys._getframe(1))])

    def place_of(self, error: BaseException) -> Place:
        """Returns the line of the model in which an error was raised."""
        return self._place(list(_traced_lines(error.__traceback__))[::-1])

    def _place(self, lines: List[Tuple[FrameType, int]]) -> Place:
        """Finds the place among frames from the innermost outwards, up to the frame that runs the model.

        The line is of the innermost code that is neither torch's nor the simulator's, and the module is the innermost.
        """
        place = Place()
        for frame, number in lines:
            code, module = frame.f_code, frame.f_locals.get("self")
            if code is self._outermost:
                break
            if place.module is None and isinstance(module, nn.Module) and id(module) in self._names:
                name = type(module).__qualname__.rpartition("<locals>.")[2]
                place = place._replace(module=self._names[id(module)], module_class=name)
            if place.file is None and not _is_library(code.co_filename):
                place = place._replace(file=code.co_filename, line=number, function=code.co_name)
        return place


def message_of(refused: BaseException) -> str:
    """Returns what PopTorch says, without the class of its error."""
    return refused.message if isinstance(refused, Error) else str(refused)


def _frames(frame: Optional[FrameType]) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _traced_lines(traceback: Optional[TracebackType]) -> Iterator[Tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


_LIBRARIES = tuple(
    str(Path(folder).resolve()) + os.sep for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)
_PYTHON = str(Path(sysconfig.get_paths()["stdlib"]).resolve()) + os.sep


@lru_cache(maxsize=None)
def _is_library(file: str) -> bool:
    """Tells whether a file is torch's, the simulator's or Python's, so that the model's own code called it."""
    if file.startswith(("<string>", "<frozen", "<eval_with_key")):
        return True
    path = str(Path(file).resolve())
    installed = "site-packages" in path or "dist-packages" in path
    return path.startswith(_LIBRARIES) or (path.startswith(_PYTHON) and not installed)
