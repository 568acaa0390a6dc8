"""Writes a model as an ONNX file, which ONNX Runtime, TensorRT, OpenVINO and web browsers run.

The graph maps `images` (batch, 3, S, S), float32 and already normalised, to `logits` (batch, classes).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator

import torch
from torch import Tensor

from vit_ipu.config import ModelConfig
from vit_ipu.errors import RunFailed, UserError
from vit_ipu.model import ViT

OPSET = 17
"""The first opset with layer norm as one operator; torch 2.0.1 cannot write a newer opset."""
MAX_BYTES = 2**31 - 2**20
"""Limit of the weights: a protobuf message ends at 2 GiB, and the rest of the graph takes less than 1 MiB."""
TOLERANCE = 1e-4
"""Tolerance of logits, absolute and relative."""


def write_onnx(path: Path, model: ModelConfig, state: Dict[str, Tensor], *, metadata: Dict[str, str]) -> None:
    """Writes the model with the weights `state` (timm's names), and `metadata` as the file's metadata_props.

    The file is checked before it gets its name: by ONNX's checker, and by ONNX Runtime, whose logits must equal the
    model's logits on random images. Raises UserError if a package is missing or the weights are too large for one
    file, and RunFailed if the check fails; then no file is left behind.
    """
    _check_packages()
    _check_size(path, state)
    network = ViT(model, attention="explicit").eval()
    network.load_state_dict(state)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=str(path.parent)) as folder:
        exported, written = Path(folder) / "exported.onnx", Path(folder) / path.name
        _export(network, model, exported)
        _add_metadata(exported, metadata, written)
        _check(written, network, model, path)
        os.replace(written, path)


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        raise UserError("an ONNX file needs the extra onnx: pip install 'vit-ipu[onnx]'") from None


def _check_size(path: Path, state: Dict[str, Tensor]) -> None:
    size = 4 * sum(tensor.numel() for tensor in state.values())
    if size > MAX_BYTES:
        raise UserError(
            f"{path}: the weights take {size / 2**30:.2f} GiB in float32 and an ONNX file holds "
            f"{MAX_BYTES / 2**30:.2f} GiB at most: convert to another format"
        )


def _export(network: ViT, model: ModelConfig, target: Path) -> None:
    """Exports the network with the TorchScript exporter.

    torch 2.0.1 has no other exporter, and this exporter needs no further package and a tenth of the time. Once
    torch drops this exporter, `dynamo` is not an argument any more, and the default exporter is based on torch.export.
    """
    options: Dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with _quiet():
        torch.onnx.export(
            network,
            (_random_images(2, model),),
            str(target),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            **options,
        )


def _add_metadata(source: Path, metadata: Dict[str, str], target: Path) -> None:
    import onnx

    graph = onnx.load(str(source))
    onnx.helper.set_model_props(graph, metadata)
    with target.open("wb") as file:
        onnx.save(graph, file)
        file.flush()
        os.fsync(file.fileno())


def _check(file: Path, network: ViT, model: ModelConfig, path: Path) -> None:
    """Raises RunFailed, with `path` in its text, if `file` is not valid or its logits differ from the network's."""
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(str(file), full_check=True)
    except onnx.checker.ValidationError as error:
        raise RunFailed(f"{path} is not valid ONNX, and was not written: {error}") from None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = _random_images(count, model)
        with torch.no_grad():
            expected = network(images)
        found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise RunFailed(
                f"{path} was not written: ONNX Runtime's logits of {count} random images differ from the model's by "
                f"{float((found - expected).abs().max()):.1e}, and {TOLERANCE:.0e} is allowed"
            )


def _random_images(count: int, model: ModelConfig) -> Tensor:
    """Returns random images (count, 3, S, S), the same in every call."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, model.image_size, model.image_size, generator=generator)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what exporters print, warn of and log."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(level)
