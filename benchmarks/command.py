"""How the programs of this folder end: a mistake of the user is told in one line, without a traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable

from vit_ipu.cli.console import error_line, exit_code
from vit_ipu.errors import NotSupported, RunFailed, UserError


def run_command(main: Callable[[], None]) -> None:
    """Runs a program, and exits with 2 after a mistake of the user, 1 if a run failed."""
    try:
        main()
    except (UserError, NotSupported, RunFailed, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error_line(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
