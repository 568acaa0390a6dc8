"""Python code that runs in another process. The module imports neither torch nor vit_ipu, so that it starts at once."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Optional


def run_python(
    code: str, *arguments: Any, timeout: float = 60, cwd: Optional[str] = None
) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that finds the modules of this one. Raises TimeoutExpired after `timeout` seconds."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=timeout, check=False, cwd=cwd
    )
