"""Counts read right: "1 image", "2 images". Every message that has a count and its noun uses `counted`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vit_ipu
from vit_ipu.text import counted

SOURCES = Path(vit_ipu.__file__).parent
NOUNS = "images threads classes updates IPUs samples shards places entries files micro-batches blocks values stages"
NOUNS += " replicas processes cores tensors rules operations kinds times folders heads tiles layers labels cycles"
NOUNS += " GPUs steps parameters"
AT_LEAST_TWO = {
    ("cli/config_output.py", "count"),  # only told if above 1
    ("data/sources/held_out_classes.py", "num_classes"),  # else no image is held out at all, which is refused
    ("data/sources/small_sets.py", "len(FASHION_CLASSES)"),
    ("ipu_rules.py", "stages"),  # of a pipeline that is too long for its micro-batches
    ("ipu_rules.py", "total"),  # not a power of two
    ("ipu_rules.py", "1"),
    ("ipu_rules.py", "per_process"),  # above 64
    ("planner/hardware.py", "num_ipus"),  # more than the largest POD has
    ("backends/native/micro_batches.py", "num_processes"),
    ("config.py", "known"),  # classes of the known sources
    ("planner/search.py", "num_ipus"),  # of a POD
    ("report/evaluation_pictures.py", "len(found)"),  # more than are shown
    ("report/evaluation_pictures.py", "num_images"),  # more than were searched
    ("report/page.py", "num_searched"),  # a share of torchrun's first process
    ("weights/inert.py", "count"),  # limits of the reader of pickles
    ("weights/inert.py", "work"),
}
"""Counts that are never 1 where they are told: the file, and the expression."""
NOT_COUNTS = {
    ("cli/plan_output.py", "plan[hardware]"),
    ("runs/divergence.py", "factor"),
    ("runs/last_evaluation.py", "len(classes)"),  # read back from a file, never shown
    ("weights/choose.py", "kind"),
}


def uncounted(path):
    """Yields the expressions of f-strings that are followed by a plural noun, and are not a call of `counted`."""
    for text in ast.walk(ast.parse(path.read_text())):
        parts = text.values if isinstance(text, ast.JoinedStr) else []
        for value, after in zip(parts, parts[1:]):
            if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant) and is_noun(after.value):
                yield value


def is_noun(text):
    words = text[1:].split(" ")[0].rstrip(".,;:)")
    return text.startswith(" ") and words in NOUNS.split()


def is_constant_or_measure(value):
    """Tells whether a value is written in capitals, such as a limit, or has decimal places."""
    name = getattr(value.value, "attr", getattr(value.value, "id", ""))
    has_places = value.format_spec is not None and "f" in ast.dump(value.format_spec.values[0])[-6:]
    return name.isupper() or has_places


def short(node):
    """Returns an expression as text: names, calls, keys, and the left side of an operation."""
    if isinstance(node, ast.Call):
        return f"{short(node.func)}({', '.join(map(short, node.args))})"
    if isinstance(node, ast.Subscript):
        key = node.slice
        while hasattr(key, "value"):  # Python 3.8 wraps the constant once more
            key = key.value
        return f"{short(node.value)}[{key}]"
    if isinstance(node, ast.BinOp):
        return short(node.left)
    return str(getattr(node, "id", getattr(node, "attr", getattr(node, "value", node))))


def test_every_count_with_a_noun_is_counted():
    found = set()
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        if name.startswith("simulator/"):  # its messages are PopTorch's
            continue
        found |= {(name, short(v.value)) for v in uncounted(path) if not is_constant_or_measure(v)}
    assert found - AT_LEAST_TWO - NOT_COUNTS == set()
    assert (AT_LEAST_TWO | NOT_COUNTS) - found == set(), "remove these from the list"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (counted(1, "image"), "1 image"),
        (counted(0, "image"), "0 images"),
        (counted(1_281_167, "image"), "1,281,167 images"),
        (counted(1, "class", "classes"), "1 class"),
        (counted(2, "class", "classes"), "2 classes"),
        (counted(1, "IPU"), "1 IPU"),
    ],
)
def test_a_count_has_the_right_form_of_its_noun(text, expected):
    assert text == expected
