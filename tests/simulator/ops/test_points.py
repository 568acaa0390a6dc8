"""The simulator's CTC beam search, farthest points and nearest points, each compared with exhaustive search."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest
import torch
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.ops.ctc import beam_search

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def infer(function, *inputs):
    return poptorch.inferenceModel(Calls(function))(*inputs)


def train(function, *inputs):
    model = Calls(lambda *given: poptorch.identity_loss(function(*given)[0] * model.weight, "sum"))
    model.weight = nn.Parameter(torch.ones(1))
    return poptorch.trainingModel(model)(*inputs)


# --------------------------------------------------------------------------------------------- CTC


def all_label_sequences(log_probs, blank):
    """Returns (labels, probability) pairs, most probable first: sums over all alignments that merge to the labels."""
    found = defaultdict(float)
    for alignment in itertools.product(range(log_probs.shape[1]), repeat=log_probs.shape[0]):
        merged = [label for label, _ in itertools.groupby(alignment)]
        labels = tuple(label for label in merged if label != blank)
        found[labels] += math.exp(sum(float(log_probs[t, label]) for t, label in enumerate(alignment)))
    return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_finds_the_same_sequences_as_enumeration(blank):
    log_probs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    found = beam_search(log_probs, blank, 1000)
    expected = all_label_sequences(log_probs, blank)
    assert [labels for labels, _ in found[:5]] == [labels for labels, _ in expected[:5]]
    for (_, log_probability), (_, probability) in zip(found, expected):
        assert log_probability == pytest.approx(math.log(probability), rel=1e-5)


def test_the_decoder_returns_paths_of_each_sample_within_its_length():
    log_probs = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(1)).log_softmax(2)
    lengths = torch.tensor([5, 3], dtype=torch.int32)
    scores, path_lengths, labels = infer(
        lambda p, n: poptorch.ctc_beam_search_decoder(p, n, blank=3, beam_width=500, top_paths=2), log_probs, lengths
    )
    assert scores.shape == path_lengths.shape == (2, 2)
    assert labels.shape == (2, 2, 5)
    for sample, steps in enumerate((5, 3)):
        for path, (expected, probability) in enumerate(all_label_sequences(log_probs[:steps, sample], 3)[:2]):
            length = int(path_lengths[sample, path])
            assert tuple(labels[sample, path, :length].tolist()) == expected
            assert labels[sample, path, length:].tolist() == [3] * (5 - length)
            assert float(scores[sample, path]) == pytest.approx(-math.log(probability), rel=1e-5)


def test_the_decoder_returns_zeros_on_the_host():
    out = poptorch.ctc_beam_search_decoder(torch.randn(4, 2, 3), torch.tensor([4, 4]), top_paths=2)
    assert [tensor.shape for tensor in out] == [(2, 2), (2, 2), (2, 2, 4)]
    assert not any(tensor.any() for tensor in out)


PROBS, LENGTHS = torch.zeros(4, 2, 3), torch.tensor([4, 4])


@pytest.mark.parametrize(
    ("probs", "lengths", "named", "message"),
    [
        ([1.0], LENGTHS, {}, "probs must be a torch.tensor argument. <class 'list'> is not supported."),
        (PROBS, [4, 4], {}, "lengths must be a torch.tensor argument. <class 'list'> is not supported."),
        (PROBS[0], LENGTHS, {}, "Incorrect shape for first input to CTC beam search decoder."),
        (PROBS, LENGTHS, {"beam_width": 2, "top_paths": 3}, "top_paths (3) must be between 1 and beam_width (2)"),
        (PROBS, LENGTHS, {"blank": 3}, "blank (3) must be one of the 3 classes"),
    ],
    ids=["probs", "lengths", "shape", "paths", "blank"],
)
def test_invalid_arguments_of_the_decoder_are_refused(probs, lengths, named, message):
    with pytest.raises(poptorch.Error) as caught:
        infer(lambda x: poptorch.ctc_beam_search_decoder(probs, lengths, **named)[0] + x, torch.zeros(1))
    assert message in str(caught.value)


def test_the_decoder_is_not_simulated_in_training():
    with pytest.raises(NotImplementedError, match="poptorch.ctc_beam_search_decoder in training"):
        train(poptorch.ctc_beam_search_decoder, PROBS, LENGTHS)


# --------------------------------------------------------------------------------------------- fps


def farthest(points, first, count):
    taken = [first]
    while len(taken) < count:
        taken.append(max(range(len(points)), key=lambda i: min(math.dist(points[i], points[j]) for j in taken)))
    return taken


@pytest.mark.parametrize("ptr", [[0, 19], [0, 13, 19], [0, 1, 3, 4, 9, 18, 19]], ids=["one", "two", "six"])
@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_fps_takes_the_farthest_point_of_each_sample(ptr, ratio):
    src = torch.rand(19, 3, generator=torch.Generator().manual_seed(0))
    out = infer(lambda x: poptorch.fps(x, ptr, ratio), src)
    expected = []
    for begin, end in zip(ptr, ptr[1:]):
        taken = farthest(src[begin:end].tolist(), 0, math.ceil((end - begin) * ratio))
        expected += [begin + index for index in taken]
    assert out.dtype == torch.int32
    assert out.tolist() == expected


def test_fps_with_a_random_start_takes_every_point_of_each_sample():
    src = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    out = infer(lambda x: poptorch.fps(x, [0, 4, 5, 9], 1.0, True), src).tolist()
    assert [set(out[:4]), set(out[4:5]), set(out[5:])] == [{0, 1, 2, 3}, {4}, {5, 6, 7, 8}]


SRC = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1],), "`fps` must take a torch.tensor input. <class 'list'> is not supported."),
        ((SRC, (0, 4)), "`ptr` must be a list of integers."),
        ((SRC, [0]), "`ptr` must containt at least 2 elements."),
        ((SRC, [0, 4], 1), "`ratio` must be of float type. <class 'int'> is not supported."),
        ((SRC, [0, 4], 0.5, 1), "`random_start` must be of bool type. <class 'int'> is not supported."),
        ((SRC, [0, 4], 1.5), "`ratio` (1.5) has to be in range (0.0, 1.0>"),
        ((SRC[0], [0, 2]), "`src` is supposed to be 2d Tensor, while it has 1 dims"),
        ((SRC, [0, 1, 2, 3, 4, 4]), "`ptr` length (6) is supposed to be < src.size(0) (4)"),
    ],
    ids=["src", "ptr", "short", "ratio", "start", "range", "rank", "long"],
)
def test_invalid_arguments_of_fps_are_refused(arguments, message):
    arguments = arguments if len(arguments) > 1 else (*arguments, [0, 4])
    with pytest.raises(poptorch.Error) as caught:
        infer(lambda x: poptorch.fps(*arguments) + x.int(), torch.zeros(1))
    assert message in str(caught.value)


# ----------------------------------------------------------------------------------------- nearest

CORNERS = torch.tensor([[-1, -1], [-1, 1], [1, 1], [1, -1], [-2, -2], [-2, 2], [2, 2], [2, -2]]).float()
CENTRES = torch.tensor([[-1, 0], [1, 0], [-2, 0], [2, 0]]).float()


@pytest.mark.parametrize(
    ("batch_x", "batch_y", "expected"),
    [
        (None, None, [0, 0, 1, 1, 2, 2, 3, 3]),
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3]),
        ([0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 3, 3, 3, 3, 3, 3]),
        (torch.tensor([0, 0, 1, 1, 1, 1, 1, 1]), [0, 0, 0, 1], [0, 0, 3, 3, 3, 3, 3, 3]),
        (None, torch.zeros(4, dtype=torch.int64), [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
    ids=["none", "lists", "uneven", "mixed", "one"],
)
def test_nearest_finds_points_of_the_same_sample(batch_x, batch_y, expected):
    out = infer(poptorch.nearest, CORNERS, CENTRES, batch_x, batch_y)
    assert out.dtype == torch.int32
    assert out.tolist() == expected


def test_nearest_takes_points_of_one_number():
    out = infer(poptorch.nearest, torch.tensor([0.1, 0.9]), torch.tensor([1.0, 0.0]))
    assert out.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "raised", "message"),
    [
        (([1], CENTRES), poptorch.Error, "`nearest` must take a torch.tensor `x` input. <class 'list'>"),
        ((CORNERS, [1]), poptorch.Error, "`nearest` must take a torch.tensor `y` input. <class 'list'>"),
        ((CORNERS, CENTRES, (0,)), poptorch.Error, "while `batch_x` is of type <class 'tuple'>"),
        ((CORNERS[None], CENTRES), ValueError, "`x` has 3 dims and `y` has 2 dims."),
        ((CORNERS, CENTRES[:, :1]), ValueError, "Inputs shapes inconsistent x.shape[1]=2 vs. y.shape[1]=1"),
        ((CORNERS, CENTRES, [0] * 3), ValueError, "x.size(0) == batch_x.size(0)"),
        ((CORNERS, CENTRES, None, [0] * 3), ValueError, "y.size(0) == batch_y.size(0)"),
        ((CORNERS, CENTRES, [1] + [0] * 7), ValueError, "'batch_x' is not sorted"),
        ((CORNERS, CENTRES, [0] * 8, [1, 0, 0, 0]), ValueError, "'batch_y' is not sorted"),
        ((CORNERS, CENTRES, [0] * 7 + [1]), ValueError, "occur in 'batch_x' that do not occur in 'batch_y'"),
    ],
    ids="x y type rank features size-x size-y sorted-x sorted-y samples".split(),
)
def test_invalid_arguments_of_nearest_are_refused(arguments, raised, message):
    with pytest.raises(raised) as caught:
        infer(lambda x: poptorch.nearest(*arguments) + x.int(), torch.zeros(1))
    assert message in str(caught.value)


@pytest.mark.parametrize(("name", "arguments"), [("fps", (SRC, [0, 4])), ("nearest", (CORNERS, CENTRES))])
def test_points_have_no_host_implementation(name, arguments):
    with pytest.raises(NotImplementedError, match=f"Could not run 'poptorch::{name}'"):
        getattr(poptorch, name)(*arguments)
