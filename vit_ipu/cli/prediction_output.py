"""Writers of predictions: text, one JSON object or CSV. Each writes an image at a time and keeps none."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional, TextIO

from typing_extensions import Protocol

from vit_ipu.cli.paths import require_parent
from vit_ipu.errors import UserError
from vit_ipu.text import escaped, message

if TYPE_CHECKING:
    from vit_ipu.predict import Prediction

_USUAL_COLUMNS = 5


class PredictionWriter(Protocol):
    """Writer of the predictions for images, one after the other."""

    def write(self, prediction: Prediction) -> None:
        """Writes the classes of an image, best first, with their probabilities."""

    def end(self, unreadable: Dict[str, str], facts: Dict[str, Any]) -> None:
        """Ends what was written; `unreadable` has the errors of other images by path, `facts` the device."""


class TextWriter:
    """PredictionWriter for people: the path of each image, and a line for each class."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, prediction: Prediction) -> None:
        lines = [f"  {100 * probability:6.2f} %  {message(name)}" for name, probability in prediction.classes]
        self._file.write("\n".join([message(prediction.path), *lines]) + "\n")

    def end(self, unreadable: Dict[str, str], facts: Dict[str, Any]) -> None:
        """Writes nothing: stderr has the errors."""


class JsonWriter:
    """PredictionWriter of one JSON object, which is begun by the first prediction."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._separator = file, '{"predictions": ['

    def write(self, prediction: Prediction) -> None:
        classes = [{"name": name, "probability": value} for name, value in prediction.classes]
        self._file.write(self._separator + json.dumps({"image": prediction.path, "classes": classes}, allow_nan=False))
        self._separator = ", "

    def end(self, unreadable: Dict[str, str], facts: Dict[str, Any]) -> None:
        start = "" if self._separator == ", " else self._separator
        rest = json.dumps({"unreadable": unreadable, **facts}, allow_nan=False)
        self._file.write(f"{start}], {rest[1:]}\n")


class CsvWriter:
    """PredictionWriter of a line for each image: its path, then each class and its probability, best first."""

    def __init__(self, file: TextIO) -> None:
        self._writer, self._has_head = csv.writer(file, lineterminator="\n"), False

    def write(self, prediction: Prediction) -> None:
        self._write_head(len(prediction.classes))
        cells = [cell for name, value in prediction.classes for cell in (escaped(name), f"{value:.6f}")]
        self._writer.writerow([escaped(prediction.path), *cells])

    def end(self, unreadable: Dict[str, str], facts: Dict[str, Any]) -> None:
        self._write_head(_USUAL_COLUMNS)

    def _write_head(self, num_classes: int) -> None:
        if not self._has_head:
            self._has_head = True
            columns = [f"{what}_{rank}" for rank in range(1, num_classes + 1) for what in ("class", "probability")]
            self._writer.writerow(["path", *columns])


_WRITERS: Dict[str, Callable[[TextIO], PredictionWriter]] = {".csv": CsvWriter, ".json": JsonWriter}


def require_prediction_file(path: Path) -> None:
    """Raises UserError unless predictions can be written to `path`, by its suffix and its folder."""
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"--output {path}: give a file that ends in .csv or .json")
    require_parent(path, "--output")


@contextmanager
def open_writer(path: Optional[Path], *, stdout: TextIO, as_json: bool) -> Iterator[PredictionWriter]:
    """Yields the writer for a file, which is written completely or not at all; without a file, for standard output."""
    from vit_ipu.files import written_whole

    if path is None:
        yield JsonWriter(stdout) if as_json else TextWriter(stdout)
        return
    with written_whole(path, unique=True) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield _WRITERS[path.suffix.lower()](file)
