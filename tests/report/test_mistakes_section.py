"""The parts of a page that show mistakes, confusions and classes of an evaluation."""

from __future__ import annotations

import json

import pytest
from reported_runs import evaluation, picture

from vit_ipu.errors import UserError
from vit_ipu.report.mistakes import classes_table, confusion_table, mistakes_grid
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import read_last_evaluation


@pytest.mark.parametrize(("name", "is_turned"), [("cat", False), ("signs_and_symbols", True)])
def test_long_names_of_classes_are_turned_over_the_columns_of_the_matrix(name, is_turned):
    found = confusion_table(evaluation(2, classes=[name, "dog"]))
    assert found.count('<th scope="col" class="turned">') == (2 if is_turned else 0)


def test_names_are_escaped():
    for part in (mistakes_grid, confusion_table, classes_table):
        assert "<class" not in part(evaluation())
        assert "&lt;class 0&gt;" in part(evaluation())


def test_small_pictures_keep_their_pixels():
    assert '<img class="small"' in mistakes_grid(evaluation())
    large = dict(evaluation().mistakes[0].model_dump(), picture=picture(128))
    assert "<img src" in mistakes_grid(evaluation(mistakes=[large]))
    assert mistakes_grid(evaluation(mistakes=[])) == "<p>There is no mistake to show.</p>"


def test_a_matrix_of_many_classes_is_a_list_of_pairs():
    assert "Rows: the class of the images" in confusion_table(evaluation(30))
    listed = confusion_table(evaluation(31))
    assert "taken for" in listed
    assert listed.count("<tr>") == 2


def test_classes_are_listed_worst_first_and_without_those_that_have_no_image():
    table = classes_table(evaluation())
    assert table.index("75.0%") < table.index("100.0%")
    assert "class 2" not in table[: table.index("</table>")]


def test_classes_of_which_no_image_was_evaluated_are_named_below_the_table():
    assert classes_table(evaluation()).endswith(
        "</table><p>Not measured, as no image of them was evaluated: &lt;class 2&gt;.</p>"
    )
    many = classes_table(evaluation(20))
    assert "evaluated: &lt;class 2&gt;, &lt;class 3&gt;, " in many
    assert many.endswith("&lt;class 11&gt; (and 8 more).</p>")
    assert "Not measured" not in classes_table(evaluation(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"confusion": [(0, 3, 1)]},
        {"classes": []},
        {"update": -1},
        {"mistakes": [{"name": "a"}]},
        {"extra": 1},
        {"classes": ["c"] * 100_000},
        {"mistakes": [dict(evaluation().mistakes[0].model_dump(), picture="A=")]},
    ],
    ids=["a class without a name", "no classes", "update", "mistake", "another key", "too many classes", "picture"],
)
def test_a_damaged_evaluation_is_refused(tmp_path, changes):
    folder = RunFolder(tmp_path)
    values = evaluation().model_dump()
    folder.evaluation.write_text(json.dumps(values))
    assert read_last_evaluation(folder).update == 4
    folder.evaluation.write_text(json.dumps(dict(values, **changes)))
    with pytest.raises(UserError, match="evaluation.json is damaged: it is not what the run wrote"):
        read_last_evaluation(folder)
