"""Refusal of empty values on the command line, such as those of shell variables that are not set.

An empty path would otherwise mean the current folder: `--output "$RUN"` would fill it with the files of a run.
"""

from typing import Any, List

import typer.core

from vit_ipu.errors import UserError


class Command(typer.core.TyperCommand):
    """Command that refuses arguments and options that are given, but empty."""

    def parse_args(self, ctx: Any, args: List[str]) -> List[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in () if ctx.resilient_parsing else self.get_params(ctx):
            value: Any = given.get(param.name)
            if "" in (value if isinstance(value, (list, tuple)) else [value]):
                raise UserError(_refusal(param))
        return super().parse_args(ctx, args)


def _refusal(param: Any) -> str:
    """Returns the message about an empty value; `param` is of click, or of the copy of click in newer typers."""
    is_option = param.param_type_name == "option"
    name = param.opts[0] if is_option else (param.metavar or param.name.upper()).strip("[].")
    remedy = "give a value or leave it out" if is_option and not param.required else "give a value"
    return f"{name} is empty: {remedy}; if it is a shell variable, set it"
