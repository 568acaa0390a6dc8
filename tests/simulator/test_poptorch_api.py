"""The simulator has PopTorch's public API: every name of tables/poptorch_api.json, with its parameters and values.

The table was read from PopTorch's sources (tables/NOTICE); each entry of the table is a test case here.
"""

from __future__ import annotations

import ast
import builtins
import enum
import importlib
import inspect
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import torch

from vit_ipu import simulator

API = json.loads((Path(simulator.__file__).parent / "tables" / "poptorch_api.json").read_text())

KINDS = {
    "positional_or_keyword": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "keyword_only": inspect.Parameter.KEYWORD_ONLY,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}


@pytest.fixture(scope="module", autouse=True)
def installed():
    simulator.install()


def entries(*kinds: str) -> List[Any]:
    """Returns test cases (module, name, entry) of the given kinds, each with `module.name` as ID."""
    found = []
    for module, names in API["modules"].items():
        for name, entry in names.items():
            if entry["kind"] in kinds:
                found.append(pytest.param(module, name, entry, id=f"{module}.{name}"))
    return found


def signatures() -> Iterator[Any]:
    """Yields a test case (module, dotted name, entry) for each function and method."""
    for module, names in API["modules"].items():
        for name, entry in names.items():
            if entry["kind"] == "function":
                yield pytest.param(module, name, entry, id=f"{module}.{name}")
            for method, signature in entry.get("methods", {}).items():
                yield pytest.param(module, name + "." + method, signature, id=f"{module}.{name}.{method}")


def lookup(module: str, dotted: str) -> Tuple[Any, Any]:
    """Returns the attribute `module.dotted`, unbound if a class has it, and its owner: the class or the module."""
    owner: Any = importlib.import_module(module)
    *path, last = dotted.split(".")
    for name in path:
        owner = getattr(owner, name)
    return (inspect.getattr_static(owner, last) if inspect.isclass(owner) else getattr(owner, last)), owner


def parameters(found: Any, owner: Any, dotted: str) -> List[inspect.Parameter]:
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    return list(inspect.signature(found).parameters.values())


def value_of(text: str) -> Any:
    """Returns the value of a default that PopTorch's source writes as a literal or as a member of an enum."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        kind, member = text.split(".")[-2:]
        return getattr(getattr(importlib.import_module("poptorch.enums"), kind), member)


@pytest.mark.parametrize(("module", "name", "entry"), list(signatures()))
def test_functions_and_methods_have_poptorchs_parameters(module: str, name: str, entry: Dict[str, Any]):
    found, owner = lookup(module, name)
    if "property" in entry.get("decorators", []):
        assert isinstance(found, property)
        return
    wanted = [(p["name"], KINDS[p["kind"]]) for p in entry["params"]]
    assert [(p.name, p.kind) for p in parameters(found, owner, name)] == wanted
    for given, expected in zip(parameters(found, owner, name), entry["params"]):
        if "default" in expected:
            assert given.default == value_of(expected["default"])
        else:
            assert given.default is inspect.Parameter.empty


@pytest.mark.parametrize(("module", "name", "entry"), entries("enum"))
def test_enums_have_poptorchs_members(module: str, name: str, entry: Dict[str, Any]):
    found, _ = lookup(module, name)
    assert {member.name: member.value for member in found} == entry["members"]
    assert found.__bases__ == (enum.IntEnum if entry["bases"] == ["enum.IntEnum"] else enum.Enum,)


def _base(module: str, name: str) -> Any:
    """Returns the class that PopTorch's source calls `name` in `module`."""
    if name in ("abc.ABC", "Exception", "torch.nn.Module"):
        return {"abc.ABC": importlib.import_module("abc").ABC, "torch.nn.Module": torch.nn.Module}.get(
            name, getattr(builtins, name, None)
        )
    if name.startswith("torch."):
        return getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
    where = "poptorch." + name.split(".")[0] if "." in name else module
    return getattr(importlib.import_module(where), name.split(".")[-1])


@pytest.mark.parametrize(("module", "name", "entry"), entries("class"))
def test_classes_derive_from_poptorchs_bases(module: str, name: str, entry: Dict[str, Any]):
    found, _ = lookup(module, name)
    for base in entry["bases"]:
        assert issubclass(found, _base(module, base))


@pytest.mark.parametrize(
    ("module", "name", "entry"), [case for case in entries("class") if case.values[2].get("option_defaults")]
)
def test_options_have_poptorchs_defaults(module: str, name: str, entry: Dict[str, Any]):
    options = importlib.import_module("poptorch").Options()
    groups = {"Options": options, "_TrainingOptions": options.Training, "_DistributedOptions": options.Distributed}
    for option, default in entry["option_defaults"].items():
        assert getattr(groups[name], option) == value_of(default.replace(".value", ""))


@pytest.mark.parametrize("name", sorted(API["poptorch_namespace"]))
def test_the_package_itself_has_the_name(name: str):
    package = importlib.import_module("poptorch")
    assert hasattr(package, name)
    if not name.startswith("__"):
        assert name in simulator.__all__, "from poptorch import * would miss it"


@pytest.mark.parametrize("name", ["Error", "RecoverableError", "UnrecoverableError", "ConfigFileError"])
def test_exceptions_have_poptorchs_bases_and_attributes(name: str):
    entry = API["exceptions"][name]
    module = importlib.import_module(entry.get("module", "poptorch.poptorch_core"))
    found = getattr(module, name)
    assert found is getattr(importlib.import_module("poptorch"), name)
    assert [base.__name__ for base in found.__bases__] == [entry["base"]]
    assert all(hasattr(found("x"), attribute) for attribute in entry.get("attributes", []))


def test_a_name_that_poptorch_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'poptorch' has no attribute 'nonsense'"):
        importlib.import_module("poptorch").nonsense  # noqa: B018
