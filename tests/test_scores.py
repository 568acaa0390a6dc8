"""Scores of held-out images: confusions, mistakes, accuracy by class."""

from __future__ import annotations

import pytest
import torch

from vit_ipu import scores
from vit_ipu.scores import Mistake, Scores, most_confused, per_class

LOGITS = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 5], [9, 0, 0]])
LABELS = torch.tensor([0, 1, 2, 0, 2])


def joined():
    first = Scores.of(torch.tensor([7, 5]), LOGITS[:2], LABELS[:2])
    return Scores.joined([first, Scores.of(torch.tensor([6, 9, 8]), LOGITS[2:], LABELS[2:])])


def test_confusion_counts_classes_along_rows_and_predictions_along_columns():
    assert joined().confusion.tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
    assert per_class(joined().confusion) == [(2, 1), (1, 1), (2, 0)]
    assert most_confused(joined().confusion, 2) == [(0, 2, 1), (2, 0, 1)]
    assert most_confused(torch.diag(torch.tensor([3, 4])), 5) == []


def test_the_worst_mistakes_are_those_of_the_highest_loss():
    losses = torch.nn.functional.cross_entropy(LOGITS.double(), LABELS, reduction="none")
    share = LOGITS.double().softmax(dim=1)
    expected = [Mistake(8, 2, 0, share[4, 0].item(), losses[4].item())]
    expected += [Mistake(9, 0, 2, share[3, 2].item(), losses[3].item())]
    assert joined().worst(2) == tuple(expected)
    assert [mistake.index for mistake in joined().worst(10)] == [8, 9, 6]


def test_scores_of_a_binary_loss_have_sigmoids_and_means_over_the_classes():
    found = Scores.of(torch.arange(5), LOGITS, LABELS, loss="bce")
    usual = Scores.of(torch.arange(5), LOGITS, LABELS)
    assert torch.equal(found.predicted, usual.predicted)
    assert found.probabilities.tolist() == pytest.approx(LOGITS.double().max(dim=1).values.sigmoid().tolist())
    yes = LOGITS.double().sigmoid()
    right = torch.where(torch.nn.functional.one_hot(LABELS, 3) == 1, yes, 1 - yes)
    assert found.losses.tolist() == pytest.approx((-right.log().mean(dim=1)).tolist())


def test_the_best_five_are_all_if_there_are_fewer():
    assert joined().in_top5.all()
    logits = torch.arange(7.0)[None]
    found = [bool(Scores.of(torch.tensor([0]), logits, torch.tensor([label])).in_top5) for label in range(7)]
    assert found == [False, False, True, True, True, True, True]


def test_equal_logits_count_in_both_measures_or_in_none():
    found = Scores.of(torch.arange(200), torch.zeros(200, 100), torch.arange(200) % 100)
    right = found.predicted == found.labels
    assert 0 < int(right.sum()) <= int(found.in_top5.sum())
    assert bool(found.in_top5[right].all())


def test_many_classes_have_no_confusion_matrix(monkeypatch):
    monkeypatch.setattr(scores, "MOST_CONFUSED", 2)
    assert joined().confusion is None


@pytest.mark.parametrize("count", [0, 3])
def test_scores_of_right_predictions_have_no_mistakes(count):
    found = Scores.of(torch.arange(count), torch.eye(3)[:count], torch.arange(3)[:count])
    assert found.worst(5) == ()
    assert len(found) == count
