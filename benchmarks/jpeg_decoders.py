"""Measures images per second and core of ways to make a training crop: JPEG decoders with resizers, and full recipes.

    python benchmarks/jpeg_decoders.py

The JPEGs are those of photographs.py. The crops are random crops of 8 to 100 % of the area, resized to 224. The script
prints a line for each library that is not installed, and leaves the library out. Times are processor times in one
thread, taken in turns. Differences are from Pillow's pixels, in grey levels of 255.

Results on one core of a 2-core AMD EPYC (Genoa, AVX-512), Python 3.11, torch 2.15, load 0.7, files of 44 kB: vit_ipu
makes 797 crops/s. This is 2.3 times the rate of torchvision's classic recipe with Pillow (4.2 times if the images were
first resized to a short side of 256), 1.4 times torchvision's recipe on tensors, 2.0 times timm's, and 0.67 of decoding
alone.
- Decoders: the other thin wrappers of libjpeg-turbo are within 10 % of simplejpeg. simplejpeg is small (1 MB; OpenCV
  150), decodes in reduced size and reports damage. Pillow takes 1.3 to 1.6 times as long, pyvips 3 times. simplejpeg,
  OpenCV, torchvision and Pillow give equal pixels. No wheel decodes only the rows and columns of a crop, and most of
  the time is Huffman decoding, which a crop would not save.
- fastdct and fastupsample are 3 and 6 % faster, but together they change the pixels of the worst photograph by a mean
  of 1.9 and a 99th percentile of 12, which is all that the tests allow for a complete crop. They are not used.
- Resizers: torch's antialiased bilinear resize of bytes differs from Pillow's by at most one grey level (the bicubic
  one by up to eight, with a 99th percentile of 1). It takes a fifth of Pillow's time, with four bytes per pixel in
  memory format channels_last (three bytes take twice as long in torch 2.0, and another format takes half as long again
  in 2.15). If a crop does not become smaller, there is nothing to antialias: OpenCV's linear resize then differs from
  Pillow's by at most one grey level, too, and takes two thirds of torch's time. If a crop becomes smaller, OpenCV's
  linear resize differs by a mean of 3 and a 99th percentile of 19, and INTER_AREA is slower than torch. Pillow is used
  if torch takes longer (without AVX2, and for bicubic in torch 2.0), and for boxes that end within a pixel, which torch
  lacks.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import statistics
import time
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from command import run_command
from photographs import SIZE as PHOTOGRAPH_SIZE
from photographs import crop, encoded, photographs
from PIL import Image
from rich.console import Console
from rich.table import Table

from vit_ipu.config import DataConfig
from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.resize import resized
from vit_ipu.data.images.transforms import TrainTransform, random_resized_box

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Box = Tuple[int, int, int, int]
Decoder = Callable[[bytes], "np.ndarray"]
Resizer = Callable[["np.ndarray"], "np.ndarray"]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    files = jpegs(arguments.images)
    small = [with_short_side(data, 256) for data in files]
    rng = np.random.default_rng(0)
    boxes = [random_resized_box(PHOTOGRAPH_SIZE, (0.08, 1.0), (0.75, 4 / 3), rng) for _ in files]
    decoders, resizers = installed(DECODERS), installed(RESIZERS)
    print(f"{len(files)} files of {mean_size(files):.0f} bytes on average; load {os.getloadavg()[0]:.1f}")

    rates: Dict[str, float] = {}
    ways = {name: on_files(decoder, files) for name, decoder in decoders.items()}
    for name, decoder in decoders.items():
        for resizer_name, resizer in resizers.items():
            ways[name + ", " + resizer_name] = on_files(cropping(decoder, resizer), files, boxes)
    rates.update(take_turns(ways, arguments.runs))
    show_decoders(decoders, resizers, rates)
    show_differences("decoder", decoders, files)
    crops = [decoders["Pillow"](data)[top:bottom, left:right] for data, (left, top, right, bottom) in zip(files, boxes)]
    show_differences("resizer", resizers, crops)

    recipes = {name: on_files(recipe, files) for name, recipe in installed(RECIPES).items()}
    recipes["vit_ipu, short side 256"] = on_files(vit_ipu(), small)
    recipes["simplejpeg alone"] = on_files(decoders["simplejpeg"], files)
    rates.update(take_turns(recipes, arguments.runs))
    show_recipes(recipes, rates)
    print(json.dumps({"images_per_second": rates, "load": os.getloadavg()}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--runs", type=int, default=7)
    return parser.parse_args()


# ------------------------------------------------------------------------------------------- images


def jpegs(count: int) -> List[bytes]:
    """Returns JPEG files of random parts of photographs."""
    originals, rng = photographs(), np.random.default_rng(0)
    return [encoded(crop(originals, rng)) for _ in range(count)]


def with_short_side(data: bytes, side: int) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        factor = side / min(image.size)
        return encoded(image.resize([round(n * factor) for n in image.size], Image.Resampling.LANCZOS))


def mean_size(files: Sequence[bytes]) -> float:
    return statistics.mean(map(len, files))


# ------------------------------------------------------------------- decoders, resizers and recipes


def installed(candidates: Dict[str, Callable[[], Any]]) -> Dict[str, Any]:
    """Creates the candidates whose libraries are installed, and prints the others."""
    found = {}
    for name, make in candidates.items():
        try:
            found[name] = make()
        except (ImportError, AttributeError) as error:
            print(f"left out: {name} ({error})")
    return found


def pillow_decoder() -> Decoder:
    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def simplejpeg_decoder(**options: bool) -> Decoder:
    simplejpeg = importlib.import_module("simplejpeg")
    return lambda data: simplejpeg.decode_jpeg(data, **options)


def opencv_decoder() -> Decoder:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    return lambda data: cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def torchvision_decoder() -> Decoder:
    from torchvision.io import decode_jpeg

    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()


def imagecodecs_decoder() -> Decoder:
    return importlib.import_module("imagecodecs").jpeg8_decode


def turbojpeg_decoder() -> Decoder:
    decompress = importlib.import_module("turbojpeg").decompress
    return lambda data: np.asarray(decompress(data))


def vips_decoder() -> Decoder:
    os.environ["VIPS_CONCURRENCY"] = "1"
    pyvips = importlib.import_module("pyvips")
    return lambda data: pyvips.Image.new_from_buffer(data, "", access="sequential").numpy()


def pillow_resizer() -> Resizer:
    return lambda pixels: np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def torch_resizer() -> Resizer:
    def resize(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        return resized.permute(0, 2, 3, 1)[0].numpy()

    return resize


def our_resizer() -> Resizer:
    """Resizes as vit_ipu does: OpenCV if nothing becomes smaller, otherwise torch with four bytes per pixel."""
    return lambda pixels: resized(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), (SIZE, SIZE), "bilinear")


def opencv_resizer(downwards: str) -> Resizer:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def resize(pixels: np.ndarray) -> np.ndarray:
        larger = max(pixels.shape[:2]) > SIZE
        filter_ = getattr(cv2, downwards) if larger else cv2.INTER_LINEAR
        return cv2.resize(pixels, (SIZE, SIZE), interpolation=filter_)

    return resize


def vit_ipu() -> Callable[[bytes], Any]:
    transform, rng = TrainTransform(DataConfig(source="sample"), SIZE), np.random.default_rng(0)
    return lambda data: transform(EncodedImage(data, "photograph"), rng)


def torchvision_recipe() -> Callable[[bytes], Any]:
    from torchvision import transforms as T

    recipe = T.Compose(
        [T.RandomResizedCrop(SIZE), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean=MEAN, std=STD)]
    )
    return lambda data: recipe(Image.open(io.BytesIO(data)).convert("RGB"))


def torchvision_tensor_recipe() -> Callable[[bytes], Any]:
    from torchvision.io import decode_jpeg
    from torchvision.transforms import v2

    recipe = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ConvertImageDtype(torch.float32),
            v2.Normalize(mean=MEAN, std=STD),
        ]
    )
    return lambda data: recipe(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)))


def timm_recipe() -> Callable[[bytes], Any]:
    """Builds the transform of timm's create_loader, which normalises after loading."""
    create_transform = importlib.import_module("timm.data").create_transform
    recipe = create_transform(SIZE, is_training=True, use_prefetcher=True, color_jitter=None, interpolation="bilinear")
    return lambda data: recipe(Image.open(io.BytesIO(data)).convert("RGB"))


DECODERS: Dict[str, Callable[[], Decoder]] = {
    "simplejpeg": simplejpeg_decoder,
    "simplejpeg, fast": lambda: simplejpeg_decoder(fastdct=True, fastupsample=True),
    "Pillow": pillow_decoder,
    "OpenCV": opencv_decoder,
    "torchvision.io": torchvision_decoder,
    "imagecodecs": imagecodecs_decoder,
    "turbojpeg": turbojpeg_decoder,
    "pyvips": vips_decoder,
}
RESIZERS: Dict[str, Callable[[], Resizer]] = {
    "vit_ipu": our_resizer,
    "torch": torch_resizer,
    "Pillow": pillow_resizer,
    "OpenCV area": lambda: opencv_resizer("INTER_AREA"),
    "OpenCV linear": lambda: opencv_resizer("INTER_LINEAR"),
}
RECIPES: Dict[str, Callable[[], Callable[[bytes], Any]]] = {
    "vit_ipu": vit_ipu,
    "torchvision, Pillow (classic)": torchvision_recipe,
    "torchvision v2, tensors": torchvision_tensor_recipe,
    "timm": timm_recipe,
}


def cropping(decoder: Decoder, resizer: Resizer) -> Callable[[bytes, Box], np.ndarray]:
    def decoded_crop(data: bytes, box: Box) -> np.ndarray:
        left, top, right, bottom = box
        return resizer(decoder(data)[top:bottom, left:right])

    return decoded_crop


# ------------------------------------------------------------------------------ measuring and showing


def on_files(way: Callable[..., Any], files: Sequence[bytes], *others: Sequence[Any]) -> Callable[[], float]:
    """Returns a function that runs the way on every file, and returns images per second of processor time."""

    def run() -> float:
        start = time.process_time()
        for arguments in zip(files, *others):
            way(*arguments)
        return len(files) / (time.process_time() - start)

    return run


def take_turns(ways: Dict[str, Callable[[], float]], runs: int) -> Dict[str, float]:
    """Returns the median rate of each way, after one run that is not counted."""
    found: Dict[str, List[float]] = {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, run in ways.items():
            found[name].append(run())
    return {name: statistics.median(rates[1:]) for name, rates in found.items()}


def show_decoders(decoders: Sequence[str], resizers: Sequence[str], rates: Dict[str, float]) -> None:
    rows = [
        [name, *(f"{rates[key]:.0f}" for key in [name, *(name + ", " + resizer for resizer in resizers)])]
        for name in decoders
    ]
    show("Images/s and core, by decoder", ["decoder", "alone", *("with " + name for name in resizers)], rows)


def show_differences(what: str, ways: Dict[str, Callable[[Any], np.ndarray]], images: Sequence[Any]) -> None:
    """Shows by how many grey levels each way differs from Pillow's, on the worst image."""
    expected = [ways["Pillow"](image).astype(int) for image in images]
    rows = []
    for name, way in ways.items():
        differences = [np.abs(way(image) - pixels) for image, pixels in zip(images, expected)]
        worst = [max(map(measure, differences)) for measure in (np.mean, _percentile_99, np.max)]
        rows.append([name, f"{worst[0]:.2f}", *(f"{value:.0f}" for value in worst[1:])])
    show(f"Difference from Pillow's {what}, worst photograph", [what, "mean", "99th percentile", "maximum"], rows)


def _percentile_99(differences: np.ndarray) -> float:
    return float(np.percentile(differences, 99))


def show_recipes(recipes: Sequence[str], rates: Dict[str, float]) -> None:
    rows = [[name, f"{rates[name]:.0f}", f"{rates['vit_ipu'] / rates[name]:.2f}"] for name in recipes]
    show("Images/s and core, from file to tensor", ["recipe", "images/s", "vit_ipu is faster by"], rows)


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    run_command(main)
