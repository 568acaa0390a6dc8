"""Reference of all keys of a config: their types, defaults, meanings and devices, as a page and as a JSON schema.

The meanings are the docstrings below the fields in `config_sections`. A meaning that starts with `IPU:` or `CUDA and
CPU:` says on which devices the key has an effect; other keys have one on every device. The command `python -m
vit_ipu.config_reference FOLDER` writes `docs/config.md` and `pipeline_configs/config.schema.json` below a checkout.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

from vit_ipu.config import Config
from vit_ipu.config_file import yaml_value
from vit_ipu.config_mistakes import section_fields
from vit_ipu.variants import VARIANTS

PAGE, SCHEMA = Path("docs") / "config.md", Path("pipeline_configs") / "config.schema.json"
DEVICES = {"IPU": "IPUs", "CUDA and CPU": "CUDA, CPU"}
"""Devices by the start of a meaning."""
_SHAPE = tuple(VARIANTS["vit_test"])
_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True)
class Key:
    """A key of a config."""

    section: str
    name: str
    type: str
    """The values that are accepted, for people."""
    default: str
    """The default as YAML; empty if the key must be given."""
    meaning: str
    devices: str
    """Devices on which the key has an effect: all, IPUs, or CUDA and CPU."""


def config_keys() -> List[Key]:
    """Returns all keys, in the order of the sections."""
    schema, meanings = Config.model_json_schema(), _meanings()
    keys = []
    for section in Config.model_fields:
        properties = _properties(schema, section)
        for name, field in section_fields(section).items():
            text = meanings[section][name]
            start = next((start for start in DEVICES if text.startswith(f"{start}: ")), "")
            meaning = text[len(start) + 2 :] if start else text
            default = "" if field.is_required() else yaml_value(_plain(field.default))
            keys.append(Key(section, name, _type_text(properties[name]), default, meaning, DEVICES.get(start, "all")))
    return keys


def json_schema() -> Dict[str, Any]:
    """Returns the JSON schema of a config with a description of each key, for editors."""
    schema = Config.model_json_schema()
    schema["title"] = "Config of vit-ipu"
    described = {(key.section, key.name): key for key in config_keys()}
    for section in Config.model_fields:
        for name, property in _properties(schema, section).items():
            key = described[section, name]
            devices = "" if key.devices == "all" else f"{key.devices} only: "
            property["description"] = f"{devices}{key.meaning}"
            property.pop("title", None)
            if property.get("additionalProperties") is True:  # the default, which pydantic states since 2.11
                del property["additionalProperties"]
    model = _definition(schema, "model")
    model["properties"]["variant"]["enum"] = [*VARIANTS, None]
    model["required"] = [name for name in model.get("required", ()) if name not in _SHAPE]
    model["anyOf"] = [{"required": ["variant"]}, {"required": list(_SHAPE)}]
    _definition(schema, "run")["oneOf"] = [{"required": ["updates"]}, {"required": ["epochs"]}]
    return schema


def config_page() -> str:
    """Returns docs/config.md."""
    lines = [
        "# Config keys",
        "",
        "<!-- Written by python -m vit_ipu.config_reference from vit_ipu/config_sections: change its docstrings. -->",
        "",
        "A config is a YAML file with these sections. `vit-ipu init FOLDER` writes one for a folder of images,",
        "`vit-ipu config` lists those that come with the program, and `vit-ipu config NAME` shows one with all keys.",
        "`--set SECTION.KEY=VALUE` changes a key for one command.",
        "",
        "`vit-ipu config --schema > config.schema.json` writes a JSON schema, by which editors complete and check",
        "keys. Those with yaml-language-server find it by the first line of a config, which `vit-ipu init` writes:",
        "`# yaml-language-server: $schema=config.schema.json`.",
        "",
        "The last column says on which devices a key has an effect.",
    ]
    sections = _section_texts()
    keys = config_keys()
    for section in Config.model_fields:
        lines += ["", f"## {section}", "", sections[section], "", "| key | type | default | meaning | devices |"]
        lines.append("|---|---|---|---|---|")
        lines += [_row(key) for key in keys if key.section == section]
    return "\n".join(lines) + "\n"


def _row(key: Key) -> str:
    default = f"`{key.default}`" if key.default else "must be given"
    if key.section == "model" and key.name in _SHAPE:
        default = "that of `variant`"
    cells = (f"`{key.name}`", key.type, default, key.meaning, key.devices)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# ------------------------------------------------------------------------------------------ meanings


def _meanings() -> Dict[str, Dict[str, str]]:
    """Returns the docstring below each field, by section and key."""
    found: Dict[str, Dict[str, str]] = {}
    for section in Config.model_fields:
        body = _class_of(section).body
        found[section] = {
            node.target.id: _one_line(following.value.value)
            for node, following in zip(body, body[1:])
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        }
    return found


def _section_texts() -> Dict[str, str]:
    return {name: _one_line(ast.get_docstring(_class_of(name)) or "") for name in Config.model_fields}


def _class_of(section: str) -> ast.ClassDef:
    """Returns the source of the class of a section, as a tree."""
    annotation: Any = Config.model_fields[section].annotation
    [node] = ast.parse(inspect.getsource(annotation)).body
    assert isinstance(node, ast.ClassDef)
    return node


def _class_name(section: str) -> str:
    annotation: Any = Config.model_fields[section].annotation
    return str(annotation.__name__)


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())


# --------------------------------------------------------------------------------------------- types


def _definition(schema: Dict[str, Any], section: str) -> Dict[str, Any]:
    definition: Dict[str, Any] = schema["$defs"][_class_name(section)]
    return definition


def _properties(schema: Dict[str, Any], section: str) -> Dict[str, Any]:
    properties: Dict[str, Any] = _definition(schema, section)["properties"]
    return properties


def _type_text(schema: Dict[str, Any]) -> str:
    """Returns a JSON schema of one value as words, such as `whole number from 1`."""
    if "anyOf" in schema:
        parts = [_type_text(part) for part in schema["anyOf"]]
        return ", ".join(parts[:-1]) + f" or {parts[-1]}"
    if "enum" in schema or "const" in schema:
        values = [f"`{yaml_value(value)}`" for value in schema.get("enum", [schema.get("const")])]
        return ", ".join(values[:-1]) + f" or {values[-1]}" if len(values) > 1 else values[0]
    kind = schema.get("type")
    if kind == "array":
        return _array_text(schema)
    if kind == "object":
        return "mapping"
    return f"{_WORDS[str(kind)]}{_bounds(schema)}"


def _array_text(schema: Dict[str, Any]) -> str:
    items = schema.get("prefixItems")
    if items:
        inner = _type_text(items[0]) if len({json.dumps(item) for item in items}) == 1 else None
        if inner is not None:
            return f"list of {len(items)}: {inner}"
        return f"list of {len(items)}: {'; '.join(_type_text(item) for item in items)}"
    return f"list of: {_type_text(schema['items'])}"


def _bounds(schema: Dict[str, Any]) -> str:
    """Returns the bounds of a number as words, without those that are only there to refuse absurd numbers."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return "".join(
        f" {word} {_number(schema[name])}" for name, word in words.items() if name in schema and schema[name] < 1 << 30
    )


def _number(value: float) -> str:
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e5)  # pydantic's versions differ
    return f"{int(value):,}" if is_whole else f"{value:g}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def main(folder: str) -> None:
    """Writes the page and the schema below the folder of a checkout."""
    (Path(folder) / PAGE).write_text(config_page(), encoding="utf-8")
    (Path(folder) / SCHEMA).write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
