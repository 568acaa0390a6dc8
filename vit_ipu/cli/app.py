"""The program `vit-ipu`: its commands, the options of all of them, and how errors end it.

Annotations are not postponed here, because on Python 3.8 typer cannot resolve Annotated in a postponed annotation.
"""

import os
import sys
from typing import Any

import typer
import typer.core
from typing_extensions import Annotated

from vit_ipu.cli import config_commands, file_commands, run_commands
from vit_ipu.cli.console import error_line, exit_code, print_error, standard_streams
from vit_ipu.cli.empty_values import Command
from vit_ipu.errors import ConfigError
from vit_ipu.signals import INTERRUPTED, Terminated, exit_on_signals


class _Commands(typer.core.TyperGroup):
    """Command group that prints "interrupted" and exits with 130 on Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="vit-ipu",
    cls=_Commands,
    help="Fine-tune Vision Transformers over a pipeline of Graphcore IPUs, or with the same program on a GPU or a CPU.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Runs the command line; prints an error as one line on stderr, and exits with 2 for a user's mistake, else 1."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"] or ["--help"]
    exit_on_signals()  # training has handlers of its own while it can save a checkpoint
    try:
        with standard_streams():
            code = app(args=arguments, prog_name="vit-ipu", standalone_mode=False)
        sys.exit(code)
    except Terminated as ended:
        print_error(f"ended by {ended.signal_name}")
        raise
    except BrokenPipeError:  # such as that of `vit-ipu models | head -1`, which needs no message
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if not (isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0"):  # torchrun's first one tells it
            print_error(error_line(error))
        sys.exit(exit_code(error))


def _print_version(wanted: bool) -> None:
    if wanted:
        from vit_ipu import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; can be given anywhere in the command.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


for _command in (
    run_commands.train,
    config_commands.init,
    config_commands.config,
    run_commands.evaluate,
    run_commands.predict,
    config_commands.plan,
    config_commands.check,
    run_commands.compile,
    run_commands.benchmark,
    file_commands.convert,
    config_commands.models,
    file_commands.pack,
    file_commands.report,
):
    app.command(cls=Command)(_command)
