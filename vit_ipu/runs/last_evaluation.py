"""What a run keeps of its last evaluation for the report: evaluation.json, with small pictures of mistakes."""

from __future__ import annotations

import base64
import io
import json
from typing import Any, List, Optional, Tuple

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from typing_extensions import Annotated

from vit_ipu.data.images.pillow_formats import open_image
from vit_ipu.data.sources.base import Source
from vit_ipu.errors import DataError, UserError
from vit_ipu.files import write_whole
from vit_ipu.runs.folder import RunFolder
from vit_ipu.scores import MOST_CONFUSED, Mistake
from vit_ipu.small_files import read_json
from vit_ipu.text import reason_of

NUM_MISTAKES = 24
_SIDE = 128
"""Most pixels of a picture's side."""
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a picture that is damaged."""
_LONGEST_PICTURE = 1 << 17
"""Characters of a picture in base64; 128 x 128 pixels of noise have 66,000."""
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_MOST_CLASSES = 100_000
_Count = Annotated[int, Field(ge=0, lt=1 << 31)]


class ShownMistake(BaseModel):
    """A mistake with its picture."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Path of the image, or what else a person finds it by."""
    label: _Count
    predicted: _Count
    probability: Annotated[float, Field(ge=0, le=1)]
    loss: Annotated[float, Field(ge=0)]
    picture: Annotated[str, Field(pattern=_BASE64, max_length=_LONGEST_PICTURE)]
    """A PNG file in base64."""

    @property
    def image(self) -> Optional[Image.Image]:
        """The picture in RGB; None if it is damaged."""
        try:
            image = open_image(base64.b64decode(self.picture))
            is_ours = image.format == "PNG" and max(image.size) <= _SIDE
            return image.convert("RGB") if is_ours else None
        except _PICTURE_ERRORS:
            return None


class LastEvaluation(BaseModel):
    """The contents of evaluation.json."""

    model_config = ConfigDict(extra="forbid")

    update: _Count
    classes: Annotated[List[str], Field(max_length=_MOST_CLASSES)]
    confusion: List[Tuple[_Count, _Count, _Count]]
    """Class, predicted class and number of images, for each pair that occurs; empty if there are too many classes."""
    mistakes: Annotated[List[ShownMistake], Field(max_length=NUM_MISTAKES)]
    """The worst mistakes, by loss."""
    num_images: _Count = 0
    """Images that were evaluated."""
    num_searched: Optional[_Count] = None
    """Images that the mistakes were searched among: under torchrun, those of the first process; None: not known."""

    @model_validator(mode="after")
    def _labels_have_classes(self) -> LastEvaluation:
        if self.confusion and len(self.classes) > MOST_CONFUSED:
            raise ValueError(f"a confusion matrix of {len(self.classes)} classes is not counted")
        labels = [label for pair in self.confusion for label in pair[:2]]
        labels += [label for mistake in self.mistakes for label in (mistake.label, mistake.predicted)]
        if labels and max(labels) >= len(self.classes):
            raise ValueError(f"class {max(labels)} has no name")
        return self

    @property
    def is_searched_in_part(self) -> bool:
        """Whether the mistakes are from a part of the images only."""
        return self.num_searched is not None and self.num_searched < self.num_images

    @property
    def matrix(self) -> Tensor:
        """The confusion matrix (K, K) int64, by class along dim 0 and by predicted class along dim 1."""
        matrix = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        for label, predicted, count in self.confusion:
            matrix[label, predicted] = count
        return matrix


def write_last_evaluation(
    folder: RunFolder,
    update: int,
    confusion: Optional[Tensor],
    mistakes: Tuple[Mistake, ...],
    source: Source,
    *,
    num_images: int,
    num_searched: int,
) -> None:
    """Writes evaluation.json; mistakes whose images cannot be read any more are left out.

    `num_images` images were evaluated; the mistakes are the worst among `num_searched` of them.
    """
    shown = []
    for mistake in mistakes:
        try:
            picture = _encoded(source.image(mistake.index))
        except DataError:
            continue
        values = {"label": mistake.label, "predicted": mistake.predicted, "probability": mistake.probability}
        shown.append(dict(values, name=source.name(mistake.index), loss=mistake.loss, picture=picture))
    entries = []
    if confusion is not None:
        pairs = confusion.nonzero()
        entries = [[*pair, count] for pair, count in zip(pairs.tolist(), confusion[tuple(pairs.t())].tolist())]
    evaluation = {"update": update, "classes": list(source.classes), "confusion": entries, "mistakes": shown}
    counts = {"num_images": num_images, "num_searched": num_searched}
    write_whole(folder.evaluation, json.dumps({**evaluation, **counts}))


def read_last_evaluation(folder: RunFolder) -> LastEvaluation:
    """Returns the run's last evaluation. Raises UserError if its file is missing, damaged, or cannot be read."""
    try:
        values: Any = read_json(folder.evaluation)
        return LastEvaluation.model_validate(values)
    except FileNotFoundError:
        raise UserError(f"{folder.evaluation} does not exist, as in runs of versions before it was written") from None
    except ValidationError:
        raise UserError(f"{folder.evaluation} is damaged: it is not what the run wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.evaluation} cannot be read: {reason_of(error)}") from None


def _encoded(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
