"""`check` answers for 118 forward passes as PopTorch's own tables and sources do."""

from __future__ import annotations

from pathlib import Path

import pytest
from forwards import FORWARDS

from vit_ipu.check import check_module

LINES = (Path(__file__).parent / "vit_forwards.tsv").read_text().splitlines()
ANSWERS = {
    name: (answer, operations.split())
    for name, answer, operations in (line.split("\t") for line in LINES if not line.startswith("#"))
    if name != "forward"
}
REFUSED_FOR_THEIR_TYPE = {"bfloat16": "Unsupported tensor input type from pytorch: BFloat16"}
"""Forwards whose operations PopTorch has, with types that it cannot lower (LowerToPopart.cpp:141-166)."""


def test_every_forward_has_an_answer():
    assert len(ANSWERS) == 118
    assert set(ANSWERS) == set(FORWARDS)
    assert sum(answer == "refused" for answer, _ in ANSWERS.values()) == 17


@pytest.mark.parametrize("name", ANSWERS)
def test_check_answers_as_poptorch(name):
    answer, operations = ANSWERS[name]
    report = check_module(FORWARDS[name].module, FORWARDS[name].inputs)
    refused = [f for f in report.refused if f.message != REFUSED_FOR_THEIR_TYPE.get(name)]
    assert len(refused) == len(report.refused) - (name in REFUSED_FOR_THEIR_TYPE)
    assert bool(refused) == (answer == "refused")
    assert report.stopped is None
    for operation in operations:
        assert any(f"aten::{operation}" in f"{f.operation} {f.message.replace('.', '::')}" for f in refused)
    for finding in refused:
        assert finding.file.endswith("forwards.py")
        assert finding.reason
        assert finding.remedy
    assert report.num_operations > 0 or name == "dropout eval"
