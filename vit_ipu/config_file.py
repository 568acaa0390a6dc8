"""Config files: reads safe YAML and overrides from the command line, reports a mistake in one line, writes YAML."""

from __future__ import annotations

import itertools
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Container, Dict, Optional, Sequence, Set, Union

import yaml
from pydantic import ValidationError

from vit_ipu.config import Config
from vit_ipu.config_mistakes import LONGEST_VALUE, find_mistakes, shown, suggest_file, suggest_section
from vit_ipu.errors import ConfigError
from vit_ipu.run_config import CONFIG_FILE, run_folder_of, stated_settings
from vit_ipu.small_files import MAX_DEPTH, MAX_DIGITS, read_text
from vit_ipu.text import reason_of, shortened, single_line

MAX_CONFIG_BYTES = 64 << 10
"""Bytes of a config, of which PyYAML reads 100,000 a second; the longest shipped config has 3,000."""
MAX_CONFIG_VALUES = 10_000
"""Keys and values of a config, each alias counted as all that it repeats: a few lines of aliases can mean billions."""
SCHEMA_COMMENT = "# yaml-language-server: $schema="
"""Start of the line that tells an editor where the schema of a config is."""
_SCHEMA = "config.schema.json"


class OverrideError(ConfigError):
    """A mistake in an override from the command line: the message starts with --set."""


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
                raise ConfigError(f"line {line}: key {shown(key)} is given twice: remove one")
            seen.add(key)
        result: Dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return result


def _key_text(node: yaml.Node) -> str:
    """Returns a key as one line of text; for a list or a mapping, only its kind."""
    if isinstance(node, yaml.ScalarNode):
        return shortened(single_line(node.value), LONGEST_VALUE)
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

    A path that does not exist may be the name of a shipped config. A run folder means the config of the run. Raises
    ConfigError, with a message of one line, for a missing or broken file, an unknown key, a wrong type or numbers that
    do not fit together.
    """
    try:
        path = _shipped(Path(path))
        run = run_folder_of(path)
        path = path if run is None else run / CONFIG_FILE
        text = read_text(path, limit=MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the config {path}: {reason_of(error)}{_instead_of(Path(path))}") from None
    try:
        values = _load_yaml(text)
        return parse_config(values if run is None else stated_settings(values, run), overrides)
    except OverrideError:
        raise
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_text(text: str) -> Config:
    """Validates the YAML of a config. Raises ConfigError as `load_config` does."""
    return parse_config(_load_yaml(text))


def shipped_configs() -> Dict[str, Path]:
    """Returns the paths of the configs that come with the program, by name, from the wheel or from the checkout."""
    here = Path(__file__).parent
    folder = next((f for f in (here / "pipeline_configs", here.parent / "pipeline_configs") if f.is_dir()), here)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def describe_shipped() -> Dict[str, str]:
    """Returns the first sentence about each shipped config, from its header, by name."""
    return {name: _purpose(read_text(path)) for name, path in shipped_configs().items()}


def _purpose(text: str) -> str:
    """Returns the first sentence of the second paragraph of a header; the first paragraph is the command."""
    lines = list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    lines = [line for line in lines if not line.startswith(SCHEMA_COMMENT)]
    paragraph = "\n".join(line[1:].strip() for line in lines).partition("\n\n")[2]
    return re.split(r"(?<=[^ ]{2}[.:])\s", single_line(paragraph), maxsplit=1)[0].rstrip(".:")


def schema_file() -> Optional[Path]:
    """Returns the JSON schema beside the shipped configs, for editors; None if there is none."""
    configs = list(shipped_configs().values())
    path = configs[0].with_name(_SCHEMA) if configs else Path(_SCHEMA)
    return path.resolve() if path.is_file() else None


def _shipped(path: Path) -> Path:
    if path.exists() or str(path.parent) not in (".", "pipeline_configs"):
        return path
    return shipped_configs().get(path.stem, path)


def _instead_of(path: Path) -> str:
    """Returns the end of a message about a config that cannot be read: what was probably meant."""
    with suppress(OSError, ValueError):
        if path.is_dir():
            return f"; `vit-ipu init {path}` writes a config for images"
        if not path.exists():
            beside = [str(path.with_name(found.name)) for found in path.parent.glob("*.y*ml")]
            shipped = [name for name in shipped_configs() if str(path.parent) in (".", "pipeline_configs")]
            name = path.stem if path.suffix in (".yaml", ".yml") else path.name
            by_name = {Path(found).stem: found for found in beside}
            by_name.update({name: name for name in shipped if name not in by_name})
            return suggest_file(name, by_name)
    return ""


def parse_config(values: Any, overrides: Sequence[str] = ()) -> Config:
    """Validates a mapping of sections, such as `yaml.safe_load` returns. Raises ConfigError, as `load_config` does."""
    if not isinstance(values, dict):
        raise ConfigError(f"not a config: expected the sections {', '.join(Config.model_fields)} at the top")
    if not overrides:
        return _validated(values)
    try:
        return _validated(_overridden(values, overrides))
    except _Invalid as error:
        raise _blamed(values, overrides, error) from None


class _Invalid(ConfigError):
    """A config that is not valid."""

    def __init__(self, where: str, text: str) -> None:
        super().__init__(f"{where}: {text}" if where else text)
        self.where, self.text = where, text


def _validated(values: Dict[str, Any]) -> Config:
    """Returns the config of some sections; an empty section takes the defaults. Raises ConfigError."""
    try:
        return Config.model_validate({name: {} if part is None else part for name, part in values.items()})
    except ValidationError as error:
        raise _Invalid(*find_mistakes(error)) from None


def _overridden(values: Dict[str, Any], overrides: Sequence[str]) -> Dict[str, Any]:
    """Returns a copy of the sections with the overrides applied."""
    changed = {name: dict(part) if isinstance(part, dict) else part for name, part in values.items()}
    for override in overrides:
        _apply_override(changed, override)
    _replace_length(changed.get("run"), {override.partition("=")[0] for override in overrides})
    return changed


def _replace_length(run: Any, keys: Set[str]) -> None:
    """Lets an override of the run's updates replace the epochs of the config, and the other way round."""
    for stated, replaced in (("updates", "epochs"), ("epochs", "updates")):
        if f"run.{stated}" in keys and f"run.{replaced}" not in keys and run[stated] is not None:
            run.pop(replaced, None)


def _blamed(values: Dict[str, Any], overrides: Sequence[str], error: _Invalid) -> ConfigError:
    """Returns the error that names the override that causes a mistake; the error itself if the file causes it."""
    for override in overrides:
        key = override.partition("=")[0]
        if error.where == key or error.where.startswith(f"{key}."):
            return OverrideError(f"--set {shortened(override, LONGEST_VALUE)}: {error.text}")
    for index, override in enumerate(overrides):
        if _is_valid(values, [*overrides[:index], *overrides[index + 1 :]]):
            return OverrideError(f"--set {shortened(override, LONGEST_VALUE)}: {error}")
    if _is_valid(values, []):
        all_of_them = " ".join(f"--set {override}" for override in overrides)
        return OverrideError(f"{shortened(all_of_them, LONGEST_VALUE)}: {error}")
    return error


def _is_valid(values: Dict[str, Any], overrides: Sequence[str]) -> bool:
    try:
        _validated(_overridden(values, overrides))
    except ConfigError:
        return False
    return True


def yaml_value(value: Any) -> str:
    """Returns a value as YAML on one line, which `load_config` reads back."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return str(text).strip()[1:-1]


def dump_config(config: Config) -> str:
    """Returns the complete config as YAML that `load_config` reads back."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def changed_settings(config: Config, *, leave_out: Container[str] = ()) -> str:
    """Returns the settings that differ from the defaults, and those without a default, as YAML.

    `leave_out` are keys, such as `data.path`, that the text must not have.
    """
    changed: Dict[str, Dict[str, Any]] = {}
    for name in type(config).model_fields:
        section = getattr(config, name)
        values = section.model_dump(mode="json")
        for key, field in type(section).model_fields.items():
            is_changed = field.is_required() or field.default != getattr(section, key)
            if is_changed and f"{name}.{key}" not in leave_out:
                changed.setdefault(name, {})[key] = values[key]
    return yaml.safe_dump(changed, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


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
    where = f"--set {shortened(override, LONGEST_VALUE)}"
    if not equals or not dot or not name:
        meant = "" if dot else suggest_section(section, is_mapping=False).partition(": use")[0]
        raise OverrideError(f"{where}: expected section.key=value{meant}")
    if section not in Config.model_fields:
        raise OverrideError(f"{where}: no section {shown(section)}{suggest_section(section)}")
    if values.get(section) is None:
        values[section] = {}
    if not isinstance(values[section], dict):
        raise ConfigError(f"{section}: expected a mapping of keys")
    try:
        values[section][name] = _load_yaml(text)
    except ConfigError as error:
        raise OverrideError(f"{where}: {error}") from None
