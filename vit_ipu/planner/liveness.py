"""Bytes of a stage's activations: what is stashed, and the most that live at once, from a list of its operations.

All tensors grow with the micro-batch but for mixup's draw, so the list is made for one sample. The operations are those
of `vit_ipu.model` in PopTorch's order. How long a tensor lives is the simulator's rule (`simulator.cost.liveness`);
what is stashed follows popart, willow/src/transforms/pipeline.cpp and recompute.cpp.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Dict, Iterable, List, NamedTuple, Tuple

from vit_ipu.config import ModelConfig
from vit_ipu.simulator.cost.liveness import Life, peak_keeping_all, peak_recomputing

STATISTICS_BYTES = 4
"""Of a token's mean or inverse deviation in a layer norm: float32."""
MIXING_BYTES = 24
"""Of a micro-batch's draw: six float32 (vit_ipu/mixing.py)."""
LABEL_BYTES = 4


class Activations(NamedTuple):
    """Bytes for one micro-batch: what each stashed micro-batch holds, and the most that live at once."""

    stashed: int
    live: int


class TapeShape(NamedTuple):
    """What decides a stage's operations. `middles`: blocks of the stage, from 0, with a checkpoint in their middle."""

    model: ModelConfig
    element_bytes: int
    takes_bytes: bool
    """Whether images arrive as bytes, which the IPU normalises."""
    mixes: bool
    has_embed: bool
    has_head: bool
    num_blocks: int
    keeps_blocks: bool
    middles: Tuple[int, ...]
    recomputes: bool


class StageTape:
    """Builds the list of operations of a stage on one sample."""

    def __init__(self, shape: TapeShape) -> None:
        self._shape, self._model, self._format = shape, shape.model, shape.element_bytes
        self._stream = self._model.num_tokens * self._model.width * self._format
        self._tensors: Dict[str, Life] = {}
        self.segments: List[int] = []
        self._segment = 0
        self._build()

    @property
    def tensors(self) -> List[Life]:
        """All tensors of the stage."""
        return list(self._tensors.values())

    # ------------------------------------------------------------------------------------ the layers

    def _build(self) -> None:
        stream = self._embed() if self._shape.has_embed else self._arrive("x", self._stream)
        for index in range(self._shape.num_blocks):
            stream = self._block(index, stream)
        if self._shape.has_head:
            self._head(stream)
        else:
            self._tensors[stream].death = self._last

    def _embed(self) -> str:
        model = self._model
        pixels = 3 * model.image_size**2 * self._format
        patches = model.num_patches * model.width * self._format
        arriving = pixels // self._format if self._shape.takes_bytes else pixels
        name = self._arrive("images", arriving, has_gradient=False)
        if self._shape.takes_bytes:
            for step in ("cast", "scaled", "shifted"):
                name = self._run(step, pixels, [name], has_gradient=False)
        if self._shape.mixes:
            rolled = self._run("rolled", pixels, [name], has_gradient=False)
            parts = [self._run(f"part of {image}", pixels, [image], has_gradient=False) for image in (name, rolled)]
            name = self._run("mixed", pixels, parts, has_gradient=False)
        projected = self._run("patches", patches, [name], needs=[name])
        stream = self._run("with class token", self._stream, [projected])
        stream = self._run("with positions", self._stream, [stream])
        return self._dropout("embedding", stream, model.dropout, self._stream)

    def _block(self, index: int, x: str) -> str:
        middle = self._attention(f"{index}a", x)
        if index in self._shape.middles:
            self._checkpoint(middle)
        out = self._mlp(f"{index}m", middle)
        if self._shape.keeps_blocks:
            self._checkpoint(out)
        return out

    def _attention(self, at: str, x: str) -> str:
        model, stream = self._model, self._stream
        scores = model.num_heads * model.num_tokens**2 * self._format
        n = self._norm(at, x)
        qkv = self._run(f"{at} qkv", 3 * stream, [n], needs=[n])
        scaled = self._run(f"{at} scaled", stream, [qkv])
        q = self._run(f"{at} q", stream, [scaled])
        k = self._run(f"{at} k", stream, [qkv])
        products = self._run(f"{at} scores", scores, [q, k], needs=[q, k])
        weights = self._run(f"{at} weights", scores, [products])
        self._need(weights)  # softmax's backward pass reads its output
        weights = self._dropout(f"{at} weights", weights, model.attention_dropout, scores)
        v = self._run(f"{at} v", stream, [qkv])
        mixture = self._run(f"{at} mixture", stream, [weights, v], needs=[weights, v])
        merged = self._run(f"{at} merged", stream, [mixture])
        return self._leave_branch(at, x, merged, first_needs=merged)

    def _mlp(self, at: str, x: str) -> str:
        model = self._model
        hidden = model.num_tokens * model.mlp_width * self._format
        n = self._norm(at, x)
        inner = self._run(f"{at} hidden", hidden, [n], needs=[n])
        active = self._run(f"{at} active", hidden, [inner], needs=[inner])
        active = self._dropout(f"{at} active", active, model.dropout, hidden)
        return self._leave_branch(at, x, active, first_needs=active)

    def _leave_branch(self, at: str, x: str, branch: str, *, first_needs: str) -> str:
        """Adds the branch's last linear layer, its dropout, drop path and the residual sum."""
        out = self._run(f"{at} out", self._stream, [branch], needs=[first_needs])
        out = self._dropout(f"{at} out", out, self._model.dropout, self._stream)
        if self._model.drop_path > 0:
            out = self._run(f"{at} drop path", self._stream, [out])
        return self._run(f"{at} sum", self._stream, [x, out])

    def _head(self, x: str) -> None:
        model = self._model
        self._arrive("labels", LABEL_BYTES, has_gradient=False)
        name = self._norm("head", x)
        if model.representation_size:
            inner = model.representation_size * self._format
            layer = self._run("representation", inner, [name], needs=[name])
            name = self._run("tanh", inner, [layer])
            self._need(name)
        logits = self._run("logits", model.num_classes * self._format, [name], needs=[name])
        wide = self._run("wide logits", model.num_classes * 4, [logits])
        log = self._run("log probabilities", model.num_classes * 4, [wide, "labels"])
        self._need(log)

    def _norm(self, at: str, x: str) -> str:
        statistics = self._model.num_tokens * STATISTICS_BYTES
        out = self._run(f"{at} norm", self._stream, [x], needs=[x])
        for kind in ("mean", "deviation"):
            self._tensors[f"{at} {kind}"] = Life(statistics, self._last, self._last, kept=False, has_gradient=False)
            self._need(f"{at} {kind}")
        return out

    def _dropout(self, at: str, x: str, rate: float, num_bytes: int) -> str:
        if rate == 0:
            return x
        mask = self._run(f"{at} mask", num_bytes, [x], has_gradient=False)
        return self._run(f"{at} dropped", num_bytes, [x, mask], needs=[mask])

    # ----------------------------------------------------------------------------------- the tensors

    @property
    def _last(self) -> int:
        return len(self.segments) - 1

    def _arrive(self, name: str, num_bytes: int, *, has_gradient: bool = True) -> str:
        self._tensors[name] = Life(num_bytes, 0, 0, kept=True, has_gradient=has_gradient)
        return name

    def _run(
        self,
        name: str,
        num_bytes: int,
        reads: Iterable[str],
        *,
        needs: Iterable[str] = (),
        has_gradient: bool = True,
    ) -> str:
        """Appends an operation that reads tensors and makes one; its backward pass needs the tensors in `needs`."""
        self.segments.append(self._segment)
        for read in reads:
            self._tensors[read].death = self._last
        for need in needs:
            self._need(need)
        self._tensors[name] = Life(num_bytes, self._last, self._last, kept=False, has_gradient=has_gradient)
        return name

    def _need(self, name: str) -> None:
        self._tensors[name].saved_at.setdefault(self._segment, self._last)

    def _checkpoint(self, name: str) -> None:
        self._tensors[name].kept = True
        self._segment += 1


def stage_activations(shape: TapeShape, micro_batch: int) -> Activations:
    """Returns the bytes of a stage's activations for one micro-batch."""
    stashed, live = _activations_of_a_sample(shape)
    mixing = MIXING_BYTES if shape.mixes and (shape.has_embed or shape.has_head) else 0  # other stages pass it on
    return Activations(micro_batch * stashed + mixing, micro_batch * live + mixing)


@lru_cache(maxsize=None)
def _activations_of_a_sample(shape: TapeShape) -> Activations:
    tape = StageTape(shape)
    if shape.recomputes:
        stashed = sum(tensor.num_bytes for tensor in tape.tensors if tensor.kept)
        return Activations(stashed, peak_recomputing(tape.tensors, tape.segments))
    stashed = sum(tensor.num_bytes for tensor in tape.tensors if tensor.saved_at)
    return Activations(stashed, peak_keeping_all(tape.tensors, len(tape.segments)))
