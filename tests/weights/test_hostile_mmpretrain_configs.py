"""Hostile texts in the place of the config in a checkpoint: they state nothing, and nothing is executed."""

from __future__ import annotations

import ast
import time

import pytest
from mmpretrain_texts import DEEP, REFERENCE, STD, old, stated

MANY = 80_000
HOSTILE = {
    "brackets": "x = " + "[" * DEEP + "]" * DEEP,
    "brackets within the limit of characters": "x = " + "[" * 90 + "]" * 90,
    "calls": "x = f" + "()" * MANY,
    "calls over lines": "x = f" + "()\n" * MANY,
    "subscripts": "x = a" + "[0]" * MANY,
    "attributes": "x = a" + ".a" * MANY,
    "a sum": "x = 1" + "+1" * MANY,
    "a difference": "x = 1" + "-1" * MANY,
    "a difference over lines": "x = [1" + "\n-1" * MANY + "]",
    "a difference of hexadecimal numbers": "x = 0xe" + "-0xe" * (MANY // 2),
    "signs": "x = " + "-" * MANY + "1",
    "signs in words": "x = " + "not " * MANY + "1",
    "conditions": "x = 1" + " if 1 else 1" * (MANY // 4),
    "functions": "x = " + "lambda:" * (MANY // 4) + "1",
    "powers": "x = 9**9**9**9",
    "an f-string": "x = f'{" + "(" * 5000 + ")" * 5000 + "}'",
    "a long string": "x = ''' ' ''' " + "(" * 5000 + " '",
    "a bytes string": "x = b'a'",
    "5 MB": "x = '" + "a" * 5_000_000 + "'",
    "5 MB of spaces": " " * 5_000_000,
    "a complex number": "x = 1j",
    "digits": "x = " + "9" * 200_000,
    "an open string": "x = '" + "\\a" * 100_000,
    "an open bracket": "x = [",
    "other brackets": "x = [)",
    "an import": "import os",
    "a call of a function": "__import__('os').system('touch executed')",
    "a comprehension": "x = [y for y in z]",
    "a statement that is not an assignment": "dict(a=1)",
    "two targets": "x = y = 1",
    "an unpacking": "(x, y) = (1, 2)",
    "an assignment to an item": "data['test'] = 1",
    "an annotation": "x: y = 1",
    "a walrus": "x = (y := 1)",
    "null": "x = '\x00'",
    "a surrogate": "x = '\udcff'",
    "a bad escape": r"x = '\N{no such name}'",
    "letters of other scripts": "\u2179 = 1",
    "a comment": "# coding: utf-7\nx = 1",
    "a continued line": "x = \\\n1",
    "an indented line": "  x = 1",
    "two operands": "x = 1 2",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_states_nothing(name):
    began = time.perf_counter()
    assert stated(old() + HOSTILE[name] + "\n") == {}
    assert stated(HOSTILE[name] + "\n" + old()) == {}
    assert time.perf_counter() - began < 10


PARSED = ("an import", "two targets", "an unpacking", "a statement that is not an assignment", "null", "a surrogate")
PARSED += ("an assignment to an item", "an annotation", "a bad escape", "an indented line", "two operands")


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - set(PARSED)))
def test_most_hostile_texts_are_not_even_parsed(name, monkeypatch):
    texts = []
    monkeypatch.setattr(ast, "parse", texts.append)
    assert stated(HOSTILE[name]) == {}
    assert texts == []


@pytest.mark.parametrize(
    "value",
    [
        "__import__('executed')",
        "open('executed', 'w')",
        "dict([('a', open('executed', 'w'))])",
        "eval('open(1)')",
        "a[0]",
        "a[1:2]",
        "{1, 2}",
        "unknown",
        "{dict(): 1}",
    ],
)
def test_nothing_is_executed_and_other_settings_are_read(value, empty_folder):
    assert stated(old(**{"opencv_num_threads = 0": f"opencv_num_threads = {value}"})) == REFERENCE
    assert "mean" not in stated(old(**{"mean=[127.5, 127.5, 127.5]": f"mean=[127.5, 127.5, {value}]"}))
    assert list(empty_folder.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_a_path_of_windows_is_read_without_a_warning():
    assert stated(old(**{"'./work_dirs/vit'": r"'C:\data\vit'"})) == REFERENCE


def test_shared_values_cost_no_time():
    """Builds two trees of 2 ** 200 leaves each from names: comparing or hashing them would never end."""
    lines = ["a0 = (1, 1)\nb0 = (1, 1)"]
    lines += [f"{n}{i + 1} = ({n}{i}, {n}{i})" for i in range(200) for n in "ab"]
    names = "\n".join(lines)
    began = time.perf_counter()
    assert "eval_resize" not in stated(names + "\n" + old("dict(type='Resize', size=(a200, b200))"))
    assert "mean" not in stated(names + "\n" + old(**{STD: "std=(a200, b200, a200)"}))
    assert time.perf_counter() - began < 5
