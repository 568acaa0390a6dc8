"""Settings of a run that differ from the defaults, and between runs."""

from __future__ import annotations

from typing import Any, Dict

import yaml

from vit_ipu.config import Config


def changed_settings(config: Config) -> str:
    """Returns the settings that differ from the defaults, and those without a default, as YAML."""
    changed: Dict[str, Dict[str, Any]] = {}
    for name in type(config).model_fields:
        section = getattr(config, name)
        values = section.model_dump(mode="json")
        for key, field in type(section).model_fields.items():
            if field.is_required() or field.default != getattr(section, key):
                changed.setdefault(name, {})[key] = values[key]
    return yaml.safe_dump(changed, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def all_settings(config: Config) -> Dict[str, Any]:
    """Returns all settings by their keys, such as `optim.learning_rate`."""
    return {
        f"{name}.{key}": value
        for name, section in config.model_dump(mode="json").items()
        for key, value in section.items()
    }
