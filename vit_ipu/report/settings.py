"""Settings of a run by their keys, to compare runs."""

from __future__ import annotations

from typing import Any, Dict

from vit_ipu.config import Config


def all_settings(config: Config) -> Dict[str, Any]:
    """Returns all settings by their keys, such as `optim.learning_rate`."""
    return {
        f"{name}.{key}": value
        for name, section in config.model_dump(mode="json").items()
        for key, value in section.items()
    }
