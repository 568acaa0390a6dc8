"""Values in the files that describe weights: a `FolderConfig` of those that are stated, and checks of each."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

from vit_ipu.errors import CheckpointError, NotSupported
from vit_ipu.weights.native import ONE_CLASS, SEVERAL_CLASSES, known_problem_type


@dataclass(frozen=True)
class FolderConfig:
    """What the files beside the weights say about a model."""

    path: Path
    """The config.json, or the checkpoint with timm's arguments."""
    naming: str
    """Name of the library's naming of tensors: namings.py."""
    implied: Dict[str, Any] = field(default_factory=dict)
    """Settings that the library fixes where the files do not state others, by the names of WeightsMetadata."""
    stated: Dict[str, Any] = field(default_factory=dict)
    """Settings that the files state, by the names of WeightsMetadata."""
    shape: Dict[str, int] = field(default_factory=dict)
    """The stated shape, by the names of `completeness.measured_shape`."""


@contextmanager
def damage_is_in(path: Path) -> Iterator[None]:
    """Raises CheckpointError, which names the file at `path`, if the body fails at a value of that file.

    The file is called damaged unless its value is only not supported.
    """
    try:
        yield
    except CheckpointError:
        raise
    except NotSupported as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None


def heads(value: Any) -> int:
    """Returns a number of attention heads. Raises ValueError if the value is not one."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"its number of attention heads is {value}, not a whole number from 1")
    return value


def names_in(values: Any) -> Tuple[str, ...]:
    """Returns the names in a list; none for a value of another type."""
    return tuple(str(name) for name in values) if isinstance(values, (list, tuple)) else ()


def one_of(value: Any, known: Sequence[str], what: str) -> str:
    """Returns the value. Raises NotSupported if it is not one of the known ones."""
    if value not in known:
        raise NotSupported(f"its {what} {value} is not one of {', '.join(known)}")
    return str(value)


def square_side(size: Any, path: Path) -> Optional[int]:
    """Returns the side of a square; None for an empty size. Raises CheckpointError if it is not square."""
    if not size:
        return None
    sides = list(size) if isinstance(size, (list, tuple)) else [size]
    if len(set(sides)) > 1:
        text = " x ".join(map(str, sides))
        raise CheckpointError(f"{path}: its images are {text} pixels, but only square images are supported")
    return int(sides[0])


def problem_type_in(config: Dict[str, Any], num_classes: int) -> str:
    """Returns the kind of outputs; if it is not stated, a single output is a probability by itself, as in transformers.

    The source is transformers' ImageClassificationPipeline.postprocess.
    """
    stated = config.get("problem_type")
    if stated is None:
        return SEVERAL_CLASSES if num_classes == 1 else ONE_CLASS
    return known_problem_type(stated)
