"""Output for programs: one JSON object on stdout."""

from __future__ import annotations

import json
from typing import Any, Dict


def print_json(value: Dict[str, Any]) -> None:
    """Prints one JSON object on stdout."""
    print(json.dumps(value, allow_nan=False))
