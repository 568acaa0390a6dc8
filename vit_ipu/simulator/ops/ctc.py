"""Beam search over the outputs of connectionist temporal classification (python/ops.py:14-46).

For each of the likeliest label sequences up to a time step, the search keeps two log-probabilities: of all alignments
that end in a blank, and of all alignments that end in a label (Graves and Jaitly 2014, algorithm 1; Hannun et al.
2014). As in PopLibs (include/popnn/CTCInference.hpp of graphcore/poplibs), the returned probabilities are *negative*
logarithms.

T: time steps, B: batch, C: classes with the blank, P: paths returned.
"""

from __future__ import annotations

import math
from typing import Dict, Iterator, List, NamedTuple, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.errors import cpp_error, error

Labels = Tuple[int, ...]


class _Score(NamedTuple):
    """Log-probabilities of one label sequence's alignments that end in a blank or in a label."""

    blank: float = -math.inf
    label: float = -math.inf

    @property
    def total(self) -> float:
        return _log_add(self.blank, self.label)

    def plus(self, blank: float = -math.inf, label: float = -math.inf) -> _Score:
        return _Score(_log_add(self.blank, blank), _log_add(self.label, label))


def ctc_beam_search_decoder(
    probs: Tensor, lengths: Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> List[Tensor]:
    """Returns the likeliest label sequences: negative log-probabilities (B, P), lengths (B, P), labels (B, P, T).

    `probs`: log-probabilities (T, B, C); `lengths`: valid time steps (B,). Labels after a sequence's end are `blank`.
    On the host, returns zeros of these shapes, as in PopTorch.
    """
    if not isinstance(probs, Tensor):
        raise error(f"ctc_beam_search_decoder: probs must be a torch.tensor argument. {type(probs)} is not supported.")
    if not isinstance(lengths, Tensor):
        raise error(
            f"ctc_beam_search_decoder: lengths must be a torch.tensor argument. {type(lengths)} is not supported."
        )
    if probs.dim() != 3:
        raise cpp_error("Incorrect shape for first input to CTC beam search decoder.")
    time, batch, classes = probs.shape
    if not context.current.on_ipu:
        return [torch.zeros(batch, top_paths), torch.zeros(batch, top_paths), torch.zeros(batch, top_paths, time)]
    if context.current.trace is not None:
        if context.current.trace.is_training:
            raise NotImplementedError("poptorch.ctc_beam_search_decoder in training is not simulated")
        if not 0 < top_paths <= beam_width:
            raise cpp_error(f"top_paths ({top_paths}) must be between 1 and beam_width ({beam_width})")
        if not 0 <= blank < classes:
            raise cpp_error(f"blank ({blank}) must be one of the {classes} classes")
    score = probs.new_full((batch, top_paths), math.inf)
    length = probs.new_zeros((batch, top_paths), dtype=torch.int32)
    labels = probs.new_full((batch, top_paths, time), blank, dtype=torch.int32)
    if context.current.trace is None:
        paths = _best_paths(probs, lengths, blank, beam_width, top_paths)
        for sample, path, (sequence, log_probability) in paths:
            score[sample, path] = -log_probability
            length[sample, path] = len(sequence)
            labels[sample, path, : len(sequence)] = labels.new_tensor(sequence)
    return [score, length, labels]


def _best_paths(
    probs: Tensor, lengths: Tensor, blank: int, beam_width: int, top_paths: int
) -> Iterator[Tuple[int, int, Tuple[Labels, float]]]:
    """Yields sample index, path index, and the label sequence with its log-probability."""
    with context.on_host():
        probs, steps = probs.detach().cpu().double(), lengths.tolist()
        found = [beam_search(probs[:count, sample], blank, beam_width) for sample, count in enumerate(steps)]
    for sample, paths in enumerate(found):
        for number, path in enumerate(paths[:top_paths]):
            yield sample, number, path


def beam_search(log_probs: Tensor, blank: int, beam_width: int) -> List[Tuple[Labels, float]]:
    """Returns the label sequences kept after `log_probs` (T, C), likeliest first, with their log-probabilities."""
    beams: Dict[Labels, _Score] = {(): _Score(blank=0.0)}
    for step in log_probs:
        beams = dict(_likeliest(_extended(beams, step, blank, beam_width))[:beam_width])
    return [(labels, score.total) for labels, score in _likeliest(beams)]


def _extended(beams: Dict[Labels, _Score], step: Tensor, blank: int, beam_width: int) -> Dict[Labels, _Score]:
    """Returns the label sequences of the next time step: the same sequences, and the likeliest longer sequences."""
    sequences, numbers = list(beams), {labels: number for number, labels in enumerate(beams)}
    before = step.new_tensor([score.total for score in beams.values()])[:, None].repeat(1, len(step))
    for labels, number in numbers.items():
        if labels:
            before[number, labels[-1]] = beams[labels].blank  # a label repeats only after a blank
    longer = before + step  # (beams, C)
    longer[:, blank] = -math.inf
    extended = {}
    for labels, score in beams.items():
        stays = _Score(blank=score.total + float(step[blank]))
        if labels:
            stays = stays.plus(label=score.label + float(step[labels[-1]]))  # the same label again, merged
            shorter = numbers.get(labels[:-1])
            if shorter is not None:
                stays = stays.plus(label=float(longer[shorter, labels[-1]]))
                longer[shorter, labels[-1]] = -math.inf
        extended[labels] = stays
    best = longer.flatten().topk(min(beam_width, longer.numel()))
    for log_prob, position in zip(best.values.tolist(), best.indices.tolist()):
        if log_prob > -math.inf:
            extended[sequences[position // len(step)] + (position % len(step),)] = _Score(label=log_prob)
    return extended


def _likeliest(beams: Dict[Labels, _Score]) -> List[Tuple[Labels, _Score]]:
    return sorted(beams.items(), key=lambda beam: -beam[1].total)


def _log_add(a: float, b: float) -> float:
    """Returns log(exp(a) + exp(b))."""
    low, high = sorted((a, b))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
