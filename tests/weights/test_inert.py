"""Hostile pickles: they are read as inert values, or refused; nothing that they name is imported or called."""

from __future__ import annotations

import argparse
import copyreg
import io
import os
import pickle
import sys
from collections import OrderedDict

import pytest

from vit_ipu.weights.inert import Named, unpickle


def read(content):
    return unpickle(io.BytesIO(content))[0]


class Reduced:
    """Is pickled as a call of any function."""

    def __init__(self, *call):
        self._call = call

    def __reduce__(self):
        return self._call


CALLS = [
    (os.system, ("touch executed",)),
    (exec, ("open('executed', 'w')",)),
    (eval, ("open('executed', 'w')",)),
    (open, ("executed", "w")),
    (__import__, ("antigravity",)),
    (copyreg._reconstructor, (io.FileIO, object, None)),
    (io.FileIO, ("executed", "w")),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_a_call_becomes_a_value_that_keeps_its_arguments(tmp_path, monkeypatch, function, arguments, protocol):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"deep": [(Reduced(function, arguments),)]}, protocol)
    (value,) = read(content)["deep"][0]
    assert isinstance(value, Named)
    assert value.name.rpartition(".")[2] == function.__name__
    assert len(value.arguments) == len(arguments)
    assert not list(tmp_path.iterdir())


def test_a_call_of_what_a_call_returned_is_refused(tmp_path, monkeypatch):
    """Checks chains such as getattr(os, "system")("touch executed")."""
    monkeypatch.chdir(tmp_path)
    content = b"cbuiltins\ngetattr\n(cos\npath\nS'system'\ntR(S'touch executed'\ntR."
    with pytest.raises(TypeError):
        read(content)
    assert not list(tmp_path.iterdir())


def test_modules_are_not_imported():
    content = b"cantigravity\nfly\n(tR."
    assert read(content).name == "antigravity.fly"
    assert "antigravity" not in sys.modules


INSTANCES = [
    b"(S'x'\nios\nsystem\n.",  # INST
    b"(cos\nsystem\nS'x'\no.",  # OBJ
    b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85\x81.",  # NEWOBJ
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85}\x92.",  # STACK_GLOBAL and NEWOBJ_EX
]


@pytest.mark.parametrize("content", INSTANCES)
def test_every_way_to_make_an_instance_is_inert(content):
    value = read(content)
    assert (type(value).__bases__, value.name, value.arguments) == ((Named,), "os.system", ("x",))


HOSTILE = [
    b"cos\nsystem\n(S'__new__'\ncos\nsystem\ndb.",  # sets attributes of a class
    b"cos\nsystem\nN}S'__call__'\ncos\nsystem\ns\x86b.",  # by the second half of a state
    b"cos\nsystem\n(S'x'\ne.",  # extends a class
    b"cos\nsystem\nS'a'\nS'b'\ns.",  # sets an item of a class
    b"S'touch executed'\n(tR.",  # calls a string
    b"\x80\x02\x82\x01.",  # a number of copyreg's registry
    b"\x80\x04\x97.",  # a buffer beside the pickle
    b"\x80\x02Nr\xff\xff\xff\xff.",  # a table of 4 billion values
    b"\x80\x02Np4000000000\n.",
    b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # 64 GiB of bytes
    b"\x80\x04\x8e\x00\x00\x00\x00\x10\x00\x00\x00.",
    b"\x80\x02",
    b"",
    b"garbage",
    b"\x80\x02" + b"".join(b"ca\n%d\n0" % number for number in range(10_001)) + b"N.",
]


@pytest.mark.parametrize("content", HOSTILE)
def test_what_cannot_be_inert_is_refused(content):
    before = dict(vars(Named))
    with pytest.raises((TypeError, ValueError, EOFError, AttributeError, pickle.UnpicklingError)):
        read(content)
    assert dict(vars(Named)) == before


def doubled(levels):
    """Returns the operations that make a tuple which holds one tuple twice, and so on, with memo entries 0 to levels.

    The hash of the value takes 2 ** levels steps: with 60 levels, centuries.
    """
    return b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(levels))


def nested(levels):
    """Returns the operations that make a tuple in a tuple in a tuple, whose hash would overflow the stack of C."""
    return b")" + b"\x85" * levels


BIG = b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x01" * (1 << 20) + b"q\x00"
COSTLY = {
    "a key": b"\x80\x02" + doubled(60) + b"}h\x3cK\x01s.",
    "keys": b"\x80\x02" + doubled(60) + b"}(h\x3cK\x01K\x02K\x03u.",
    "a key of DICT": b"\x80\x02" + doubled(60) + b"(h\x3cK\x01d.",
    "a key of protocol 0": b"\x80\x02" + doubled(60) + b"p61\n}g61\nK\x01s.",
    "a key of an OrderedDict": b"\x80\x02" + doubled(60) + b"ccollections\nOrderedDict\n)Rh\x3cK\x01s.",
    "a key by DUP": b"\x80\x02" + b")" + b"2\x86" * 60 + b"q\x00}h\x00K\x01s.",
    "a set": b"\x80\x04" + doubled(60) + b"\x8f(h\x3c\x90.",
    "a frozenset": b"\x80\x04" + doubled(60) + b"(h\x3c\x91.",
    "frozensets": b"\x80\x04)q\x00" + b"(h\x00\x91h\x00\x86q\x00" * 60 + b"}h\x00K\x01s.",
    "numbered by MEMOIZE": b"\x80\x04)\x94"
    + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60))
    + b"}h\x3cK\x01s.",
    "wide tuples": b"\x80\x02)q\x00" + (b"(" + b"h\x00" * 100 + b"tq\x00") * 10 + b"}h\x00K\x01s.",
    "one key many times": b"\x80\x02" + doubled(12) + b"}" + b"h\x0cK\x01s" * 1000 + b".",
    "a large number many times": b"\x80\x02" + BIG + b"}" + b"h\x00K\x01s" * 10_000 + b".",
    "a deep key": b"\x80\x02}" + nested(200_000) + b"K\x01s.",
}


@pytest.mark.parametrize("name", COSTLY)
def test_keys_whose_hash_takes_any_time_are_refused(name):
    with pytest.raises(pickle.UnpicklingError, match="its keys hold [0-9]+ values after|a key is nested [0-9]+ deep"):
        read(COSTLY[name])


def test_keys_of_usual_size_are_read():
    value = {(a, (b, "x", (a, b))): {frozenset({a, b})} for a in range(50) for b in range(50)}
    long = {tuple(range(5000)): 1, 1 << 70: {(1 << 200, 2)}}
    shared = (1, 2, 3)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for each in (value, long, {"a": [(shared, shared)] * 1000, shared: (shared,) * 1000}):
            found = read(pickle.dumps(each, protocol))
            assert found == each or protocol < 4  # in older protocols sets are calls
    levels = ((((),),),)
    assert read(pickle.dumps([levels, {levels: 1}], 4)) == [levels, {levels: 1}]
    assert read(b"\x80\x02" + doubled(60) + b"0K\x01.") == 1  # made, but never hashed


def test_values_of_pythons_own_types_come_back_as_they_were():
    value = {"a": [1, 2.5, None, True, "text", (1, (2,))], 3: -(1 << 70), (1, 2): {}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert read(pickle.dumps(value, protocol)) == value
    assert read(pickle.dumps([b"bytes", {1, 2}], 4)) == [b"bytes", {1, 2}]  # in older protocols these are calls


def test_a_class_derived_from_dict_or_list_keeps_its_content():
    ordered = read(pickle.dumps(OrderedDict(a=1, b=2), 2))
    assert (ordered.name, ordered.pairs) == ("collections.OrderedDict", {"a": 1, "b": 2})
    attributes = read(pickle.dumps(argparse.Namespace(x=1), 2))
    assert (attributes.name, attributes.state) == ("argparse.Namespace", {"x": 1})


def test_pickles_are_read_one_after_the_other():
    file = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps([2], 2) + b"rest")
    assert [unpickle(file)[0], unpickle(file)[0], file.read()] == [[1], [2], b"rest"]
