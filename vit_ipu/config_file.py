"""Configs as files: safe YAML in, overrides from the command line, one clear line for what is wrong, YAML out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Sequence, Union

import yaml
from pydantic import ValidationError

from vit_ipu.config import Config
from vit_ipu.errors import ConfigError, suggest


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-6 as a number (YAML 1.2), has no dates, and takes only words as keys, each once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            line, key = key_node.start_mark.line + 1, key_node.value
            if key_node.tag != "tag:yaml.org,2002:str":
                raise ConfigError("line {}: {} is no word, and so no key".format(line, key if key else "an empty key"))
            if key in seen:
                raise ConfigError(f"line {line}: key {key!r} is given twice: remove one")
            seen.add(key)
        result: Dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return result


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads back: a word that looks like its numbers is quoted."""


_EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))  # type: ignore[attr-defined]
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load_config(path: Union[str, Path], overrides: Sequence[str] = ()) -> Config:
    """Reads the YAML at `path`, applies overrides of the form `section.key=value`, and validates.

    A path that does not exist may be the name of a shipped config. Raises ConfigError, one line, for a missing or
    broken file, an unknown key, a wrong type or numbers that do not fit together.
    """
    try:
        path = _shipped(Path(path))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"cannot read the config {path}: {reason}") from None
    try:
        return parse_config(_load_yaml(text), overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def shipped_configs() -> Dict[str, Path]:
    """The configs that come with the program, by name: from the wheel, or from the checkout it runs from."""
    here = Path(__file__).parent
    folder = next((f for f in (here / "pipeline_configs", here.parent / "pipeline_configs") if f.is_dir()), here)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _shipped(path: Path) -> Path:
    if path.exists() or str(path.parent) not in (".", "pipeline_configs"):
        return path
    return shipped_configs().get(path.stem, path)


def parse_config(values: Any, overrides: Sequence[str] = ()) -> Config:
    """Validates a mapping of sections, such as `yaml.safe_load` or a run folder gives."""
    if not isinstance(values, dict):
        raise ConfigError("not a config: expected the sections {} at the top".format(", ".join(Config.model_fields)))
    # copies, so that overrides change nothing of the caller's; an empty section has only defaults
    values = {k: {} if v is None else dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for override in overrides:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def dump_config(config: Config) -> str:
    """The whole config as YAML that `load_config` reads back."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def _load_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError("line {}: {}".format(line, error.problem or "not YAML")) from None
    except RecursionError:
        raise ConfigError("nested too deeply for a config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}") from None


def _apply_override(values: Dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot or not name:
        raise ConfigError(f"--set {override}: expected section.key=value")
    if section not in Config.model_fields:
        raise ConfigError(f"--set {override}: no section {section!r}{suggest(section, Config.model_fields)}")
    if not isinstance(values.setdefault(section, {}), dict):
        raise ConfigError(f"{section}: expected a mapping of keys")
    values[section][name] = _load_yaml(text)


def _one_line(error: ValidationError) -> str:
    """The first mistake as `section.key: what is wrong`, and how many more there are."""
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda e: e["type"] == "missing")  # a misspelt key explains a missing one
    where = ".".join(str(part) for part in first["loc"])
    section = Config.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        known = Config.model_fields if len(first["loc"]) == 1 else section.annotation.model_fields  # type: ignore[union-attr]
        text = "unknown key{}".format(suggest(str(first["loc"][-1]), known))
    elif first["type"] == "missing":
        text = "is missing"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = "{}, got {!r}".format(first["msg"].replace("Input should be", "should be"), first["input"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return "{}{}{}{}".format(where, ": " if where else "", text, more)
