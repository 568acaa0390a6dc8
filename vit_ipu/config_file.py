"""Config files: reads safe YAML and overrides from the command line, reports a mistake in one line, writes YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Sequence, Union

import yaml
from pydantic import ValidationError

from vit_ipu.config import Config
from vit_ipu.errors import ConfigError, suggest
from vit_ipu.small_files import MAX_DEPTH, MAX_DIGITS, read_text
from vit_ipu.text import reason_of, shortened, single_line

MAX_CONFIG_BYTES = 64 << 10
"""Bytes of a config, of which PyYAML reads 100,000 a second; the longest shipped config has 3,000."""
MAX_CONFIG_VALUES = 10_000
"""Keys and values of a config, each alias counted as all that it repeats: a few lines of aliases can mean billions."""
_LONGEST_VALUE = 200
"""Characters of a wrong value that a message shows."""


class _Loader(yaml.SafeLoader):
    """Safe YAML loader: 1e-6 is a number (YAML 1.2), dates are strings, and keys must be strings and unique.

    Depth, digits and the number of values are bounded, values that aliases repeat included.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: Dict[int, int] = {}
        """Number of values in each node that is composed completely, by its id; nodes live as long as the loader."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConfigError(f"line {line}: nested too deeply for a config")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not is_alias:
            self._sizes[id(node)] = self._size(node, line)
        elif id(node) not in self._sizes:
            raise ConfigError(f"line {line}: an alias repeats the value that contains it: write the value out")
        return node

    def _size(self, node: Any, line: int) -> int:
        """Returns the number of values in a node. Raises ConfigError if there are too many."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        size = 1 + sum(self._sizes[id(part)] for part in parts)
        if size > MAX_CONFIG_VALUES:
            raise ConfigError(
                f"line {line}: more than {MAX_CONFIG_VALUES:,} values, those of aliases included: remove some"
            )
        return size

    def construct_yaml_int(self, node: Any) -> Any:
        length = len(self.construct_scalar(node))
        if length > MAX_DIGITS:
            line = node.start_mark.line + 1
            raise ConfigError(f"line {line}: a number has {length:,} digits: at most {MAX_DIGITS} are read")
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            line, key = key_node.start_mark.line + 1, key_node.value
            if key_node.tag != "tag:yaml.org,2002:str" or not isinstance(key, str):
                raise ConfigError(f"line {line}: key {_key_text(key_node) or '(empty)'} must be a string")
            if key in seen:
                raise ConfigError(f"line {line}: key {_shown(key)} is given twice: remove one")
            seen.add(key)
        result: Dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return result


def _key_text(node: yaml.Node) -> str:
    """Returns a key as one line of text; for a list or a mapping, only its kind."""
    if isinstance(node, yaml.ScalarNode):
        return shortened(single_line(node.value), _LONGEST_VALUE)
    return "(a list)" if isinstance(node, yaml.SequenceNode) else "(a mapping)"


class _Dumper(yaml.SafeDumper):
    """Safe YAML dumper whose output _Loader reads back: strings that look like numbers are quoted."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))  # type: ignore[attr-defined]
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load_config(path: Union[str, Path], overrides: Sequence[str] = ()) -> Config:
    """Reads the YAML at `path`, applies overrides of the form `section.key=value`, and validates.

    A path that does not exist may be the name of a shipped config. Raises ConfigError, with a message of one line, for
    a missing or broken file, an unknown key, a wrong type or numbers that do not fit together.
    """
    try:
        path = _shipped(Path(path))
        text = read_text(path, limit=MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the config {path}: {reason_of(error)}") from None
    try:
        return parse_config(_load_yaml(text), overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def shipped_configs() -> Dict[str, Path]:
    """Returns the paths of the configs that come with the program, by name, from the wheel or from the checkout."""
    here = Path(__file__).parent
    folder = next((f for f in (here / "pipeline_configs", here.parent / "pipeline_configs") if f.is_dir()), here)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _shipped(path: Path) -> Path:
    if path.exists() or str(path.parent) not in (".", "pipeline_configs"):
        return path
    return shipped_configs().get(path.stem, path)


def parse_config(values: Any, overrides: Sequence[str] = ()) -> Config:
    """Validates a mapping of sections, such as `yaml.safe_load` returns. Raises ConfigError, as `load_config` does."""
    if not isinstance(values, dict):
        raise ConfigError(f"not a config: expected the sections {', '.join(Config.model_fields)} at the top")
    # copies, so that overrides do not change the caller's values; an empty section takes the defaults
    values = {k: {} if v is None else dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for override in overrides:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def dump_config(config: Config) -> str:
    """Returns the complete config as YAML that `load_config` reads back."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def _load_yaml(text: str) -> Any:
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"a value has {len(text):,} characters: at most {MAX_CONFIG_BYTES:,} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(f"line {line}: {error.problem or 'not YAML'}") from None
    except RecursionError:
        raise ConfigError("nested too deeply for a config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # PyYAML's own, for example for !!int foo
        raise ConfigError(f"not YAML: a value does not fit its type: {reason_of(error)}") from None


def _apply_override(values: Dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot or not name:
        raise ConfigError(f"--set {shortened(override, _LONGEST_VALUE)}: expected section.key=value")
    if section not in Config.model_fields:
        known = suggest(section, Config.model_fields)
        raise ConfigError(f"--set {shortened(override, _LONGEST_VALUE)}: no section {_shown(section)}{known}")
    if not isinstance(values.setdefault(section, {}), dict):
        raise ConfigError(f"{section}: expected a mapping of keys")
    values[section][name] = _load_yaml(text)


def _shown(value: Any) -> str:
    return shortened(repr(value), _LONGEST_VALUE)


def _one_line(error: ValidationError) -> str:
    """Returns the first mistake as `section.key: what is wrong`, and the number of further mistakes."""
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda e: e["type"] == "missing")  # a misspelt key explains a missing one
    where = shortened(".".join(str(part) for part in first["loc"]), _LONGEST_VALUE)
    section = Config.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        known = Config.model_fields if len(first["loc"]) == 1 else section.annotation.model_fields  # type: ignore[union-attr]
        text = f"unknown key{suggest(str(first['loc'][-1]), known)}"
    elif first["type"] == "missing":
        text = "is missing"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"{first['msg'].replace('Input should be', 'should be')}, got {_shown(first['input'])}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {text}{more}" if where else f"{text}{more}"
