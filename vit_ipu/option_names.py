"""Messages for callers in Python: the arguments of functions in place of the options of commands.

Errors and notes are written once, for the commands, and name their options. The Python functions pass them through
here, so that `--resume` reads `resume=True`.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Callable, Match, TypeVar, cast

from vit_ipu.errors import RunFailed, UserError

Function = TypeVar("Function", bound=Callable[..., Any])
FLAGS = ("resume", "restart", "rescan", "trust-pickle", "features", "private", "search")
"""Options without a value, which are arguments that are true or false."""
VALUES = (
    *("device", "numerics", "to", "num-heads", "output", "checkpoint", "sha256", "allow-config-change", "push"),
    *("hardware", "pod"),
)
"""Options with a value, which are arguments of the same name."""
_WORDS = (
    "auto|ipu-sim:cuda|ipu-sim|ipu|cuda|cpu|exact|native|timm|huggingface|torchvision|mmpretrain|google|graphcore|onnx"
)
_OPTION = re.compile(rf"(?<![\w-])--({'|'.join((*FLAGS, *VALUES, 'set'))})(?![\w-])(?: ({_WORDS}|\d+)(?![\w-]|:\w))?")


def in_python(message: str) -> str:
    """Returns a message with `resume=True` for --resume, `device='cpu'` for --device cpu, and override for --set."""
    return _OPTION.sub(_argument, message)


def _argument(option: Match[str]) -> str:
    name, value = option[1].replace("-", "_"), option[2]
    if name == "set":
        return option[0].replace("--set", "override", 1)
    if option[1] in FLAGS:
        return f"{name}=True" if value is None else f"{name}=True {value}"
    if value is None:
        return name
    return f"{name}={value}" if value.isdigit() else f"{name}={value!r}"


def for_python(function: Function) -> Function:
    """Makes the messages of a function's errors name its arguments, where those of commands name options."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (UserError, RunFailed) as error:
            error.args = (in_python(str(error)), *error.args[1:])
            raise

    return cast(Function, call)
