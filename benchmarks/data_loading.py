"""Measures images per second of vit_ipu's loader and of its peers, over the same JPEGs in one run.

JPEGs of 500 x 375 pixels become batches of random resized crops of 224 with flips. The peers are torchvision's
ImageFolder and DataLoader with the classic Pillow recipe and with the v2 tensor recipe, timm's create_loader, and
webdataset over tar shards. vit_ipu's loader reads the folder, and shards of `vit-ipu pack` whose short side is 256. All
loaders take turns, with 1 and with 2 worker processes. The limit is the rate of decoding the complete images in one
process. To judge the second worker, the same number of processes also does the work without a loader; their gain is
what the machine allows.

"One by one" is vit_ipu's decoding in a plain DataLoader, which collates samples and sends the batches through a queue.
`--beside CHECKOUT` adds the loader of another commit, such as one before a change of the loader.

vit_ipu's loader hands over bytes, which the device normalises; so do timm's workers, and torchvision's workers in the
recipes called "bytes". There are enough images that no loader reaches the end of an epoch, where torch's DataLoader
waits for its workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import simplejpeg
import torch
from command import run_command
from peer_loaders import (
    BATCH,
    SIZE,
    classic_recipe,
    limited,
    timm_batches,
    torchvision_batches,
    torchvision_v2_batches,
    webdataset_batches,
)
from photographs import write_folder
from record import write_record

from vit_ipu.backends.build import resolve_device
from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.data.loading.buffers import Buffer
from vit_ipu.data.loading.loader import TrainingFill, TrainingLoader
from vit_ipu.data.loading.order import TrainingStream
from vit_ipu.data.sources.registry import open_source
from vit_ipu.pipeline import BatchPlan

CLASSIC, LIMIT = "torchvision, classic", "decoding alone"
Loader = Callable[[int, int], Iterator[int]]
"""Yields the size of each batch, for a number of workers and a number of batches."""
Measure = Callable[[int, int], float]
"""Returns images per second, for a number of workers and a number of batches."""


def main() -> None:
    arguments = _arguments()
    if not _chosen(all_loaders(Path(), Path()), arguments.only):
        names = "; ".join(all_loaders(Path(), Path()))
        sys.exit(f"--only: no loader's name begins with {' or '.join(arguments.only)}; choose from: {names}")
    with tempfile.TemporaryDirectory() as folder:
        root, shards = arguments.folder or Path(folder) / "images", Path(folder) / "shards"
        if arguments.folder is None:
            write_folder(root, arguments.images)
        pack = [sys.executable, "-m", "vit_ipu", "pack", str(root), str(shards), "--short-side", "256"]
        subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
        loaders = _chosen(all_loaders(root, shards), arguments.only)
        measures = {name: _rate_of(loader) for name, loader in loaders.items()}
        for checkout in arguments.beside:
            measures.update(measures_of(checkout, root, shards))
        rates: Dict[str, List[float]] = {}
        for _ in range(arguments.runs):  # in turns, so that other load on the machine affects all loaders
            for workers in arguments.workers:
                for name, measure in measures.items():
                    if workers == 1 or not name.startswith(LIMIT):  # decoding alone uses one process
                        key = f"{name}, {workers} workers"
                        rates.setdefault(key, []).append(measure(workers, arguments.batches + 2))
        report(rates, our_config(root, "imagefolder", 1))


def _chosen(loaders: Dict[str, Loader], beginnings: List[str]) -> Dict[str, Loader]:
    return {name: loader for name, loader in loaders.items() if name.startswith(tuple(beginnings))}


def rate(sizes: Iterator[int]) -> float:
    """Returns images per second after the first two batches."""
    next(sizes), next(sizes)
    start = time.perf_counter()
    count = sum(sizes)
    return count / (time.perf_counter() - start)


def report(rates: Dict[str, List[float]], config: Config) -> None:
    rows = []
    for name, found in rates.items():
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        classic = rates.get(f"{CLASSIC}, {name.split(', ')[-1]}")
        times = f"{ratio(found, classic):.2f}" if classic else ""
        rows.append([name, f"{statistics.median(found):,.0f}", spread, times])
    ratios = ratios_of(rates)
    lines = [f"{name}: {value:.2f}." for name, value in ratios.items()]
    write_record(
        "data-loading",
        "Images per second of loading, 500 x 375 JPEG to 224, random resized crop and flip",
        resolve_device("cpu"),
        config,
        [
            "Each ratio compares two rates of the same turn; the median over the turns is given.",
            "\n".join("- " + line for line in lines),
        ],
        (("loader", "images/s (median)", "spread", "x classic"), rows),
        {"ratios": ratios, "images_per_second": rates},
    )


def ratio(rates: List[float], others: List[float]) -> float:
    return statistics.median(a / b for a, b in zip(rates, others))


def ratios_of(rates: Dict[str, List[float]]) -> Dict[str, float]:
    """Returns the ratios that judge the rates, as far as the rates were measured."""
    workers = list(dict.fromkeys(name.split(", ")[-1] for name in rates))
    peers = [name for name in rates if name.endswith(", " + workers[0]) and name.startswith(("torchvision", "timm"))]
    fastest = max(peers, key=lambda name: statistics.median(rates[name]), default="")
    ours = {kind: f"vit_ipu, {kind}, {workers[0]}" for kind in ("folder", "packed")}
    pairs = {
        "folder over one by one": (ours["folder"], f"one by one, folder, {workers[0]}"),
        "packed over one by one": (ours["packed"], f"one by one, packed, {workers[0]}"),
        "folder over classic": (ours["folder"], f"{CLASSIC}, {workers[0]}"),
        "folder over fastest peer": (ours["folder"], fastest),
        "packed over classic": (ours["packed"], f"{CLASSIC}, {workers[0]}"),
        "packed over webdataset": (ours["packed"], "webdataset, packed, " + workers[0]),
        "folder over decoding": ("vit_ipu, folder, 1 workers", LIMIT + ", folder, 1 workers"),
        "packed over decoding": ("vit_ipu, packed, 1 workers", LIMIT + ", packed, 1 workers"),
    }
    for name in ("vit_ipu, folder", "vit_ipu, packed", "no loader, folder", "no loader, packed"):
        for more in workers[1:]:
            pair = f"{name}, {more}", f"{name}, {workers[0]}"
            pairs[f"{name}, {more} over {workers[0]}"] = pair
    for name in rates:
        if not name.startswith(("torchvision", "timm", "webdataset", "one by one", "no loader", LIMIT, "vit_ipu,")):
            pairs[f"vit_ipu over {name}"] = (name.replace(name.split(", ")[0], "vit_ipu", 1), name)
    return {name: ratio(rates[a], rates[b]) for name, (a, b) in pairs.items() if a in rates and b in rates}


# -------------------------------------------------------------------------------------- the loaders


def all_loaders(root: Path, shards: Path) -> Dict[str, Loader]:
    return {
        CLASSIC: lambda workers, batches: torchvision_batches(root, classic_recipe(), workers, batches),
        "torchvision, classic, bytes": lambda workers, batches: torchvision_batches(
            root, classic_recipe(in_bytes=True), workers, batches
        ),
        "torchvision, v2 tensors": lambda workers, batches: torchvision_v2_batches(root, workers, batches),
        "torchvision, v2 tensors, bytes": lambda workers, batches: torchvision_v2_batches(
            root, workers, batches, in_bytes=True
        ),
        "timm": lambda workers, batches: timm_batches(root, workers, batches),
        "webdataset, packed": lambda workers, batches: webdataset_batches(shards, workers, batches),
        "one by one, folder": lambda workers, batches: batches_one_by_one(root, "imagefolder", workers, batches),
        "one by one, packed": lambda workers, batches: batches_one_by_one(shards, "shards", workers, batches),
        LIMIT + ", folder": lambda workers, batches: decoded_batches(root, "imagefolder", batches),
        "vit_ipu, folder": lambda workers, batches: our_batches(root, "imagefolder", workers, batches),
        "no loader, folder": lambda workers, batches: batches_without_loader(root, "imagefolder", workers, batches),
        LIMIT + ", packed": lambda workers, batches: decoded_batches(shards, "shards", batches),
        "vit_ipu, packed": lambda workers, batches: our_batches(shards, "shards", workers, batches),
        "no loader, packed": lambda workers, batches: batches_without_loader(shards, "shards", workers, batches),
    }


def _rate_of(loader: Loader) -> Measure:
    return lambda workers, batches: rate(loader(workers, batches))


def measures_of(checkout: Path, root: Path, shards: Path) -> Dict[str, Measure]:
    """Returns the measures of the loader of another checkout of vit_ipu, each made by a Python process of its own."""

    def measure(path: Path, source: str) -> Measure:
        return lambda workers, batches: rate_in(checkout, path, source, workers, batches)

    return {
        f"{checkout.name}, folder": measure(root, "imagefolder"),
        f"{checkout.name}, packed": measure(shards, "shards"),
    }


def rate_in(checkout: Path, path: Path, source: str, workers: int, batches: int) -> float:
    """Returns the images per second that a child process measures with the code of a checkout."""
    batches_of = f"data_loading.our_batches(pathlib.Path({str(path)!r}), {source!r}, {workers}, {batches})"
    code = f"import pathlib, data_loading; print(data_loading.rate({batches_of}))"
    environment = dict(os.environ, PYTHONPATH=f"{checkout}{os.pathsep}{checkout / 'benchmarks'}")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=str(checkout), stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def our_config(path: Path, source: str, workers: int) -> Config:
    return parse_config(
        {
            "model": {"variant": "vit_small_patch16", "num_classes": 10},
            "data": {"source": source, "path": str(path), "num_workers": workers},
            "pipeline": {"global_batch_size": BATCH, "micro_batch_size": BATCH},
            "optim": {"optimizer": "sgd", "learning_rate": 0.1},
            "run": {"updates": 1},
        }
    )


def our_batches(path: Path, source: str, workers: int, batches: int) -> Iterator[int]:
    config = our_config(path, source, workers)
    images = open_source(config.data, config.model, "train")
    positions = BatchPlan.of(config).share(0, 1)
    for batch in TrainingLoader(images, config, positions, start_step=0, total_steps=batches):
        yield len(batch)


class Samples(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The images of vit_ipu's loader as a map-style data set: images (3, S, S) of uint8 and labels."""

    def __init__(self, path: Path, source: str) -> None:
        config = our_config(path, source, 0)
        images = open_source(config.data, config.model, "train")
        self._fill, self._count = TrainingFill(images, config), len(images)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        buffer = Buffer.of(1, SIZE, torch.uint8, shared=False)
        self._fill(buffer, 0, [(0, index)])
        return buffer.images[0], int(buffer.labels[0])


def batches_one_by_one(path: Path, source: str, workers: int, batches: int) -> Iterator[int]:
    return limited(lambda: Samples(path, source), workers, batches)


def decoded_batches(path: Path, source: str, batches: int) -> Iterator[int]:
    """Decodes complete images with the decoder of vit_ipu's loader, in one process."""
    config = our_config(path, source, 0)
    images = open_source(config.data, config.model, "train")
    stream = TrainingStream(len(images), 0)
    files = [images.picture(index).data for index in range(len(images))]
    for number in range(batches):
        for _, index in stream.at(range(number * BATCH, (number + 1) * BATCH)):
            simplejpeg.decode_jpeg(files[index])
        yield BATCH


def batches_without_loader(path: Path, source: str, processes: int, batches: int) -> Iterator[int]:
    """Loads the same images with the same transform, in processes that hand over nothing and keep no order."""
    with multiprocessing.Pool(processes, _begin_filling, (our_config(path, source, 0),)) as pool:
        yield from pool.imap_unordered(_fill_batch, range(batches))


def _begin_filling(config: Config) -> None:
    global _filling
    torch.set_num_threads(1)
    images = open_source(config.data, config.model, "train")
    buffers = [Buffer.of(BATCH, SIZE, torch.uint8, shared=False) for _ in range(4)]
    _filling = TrainingFill(images, config), TrainingStream(len(images), 0), buffers


def _fill_batch(number: int) -> int:
    fill, stream, buffers = _filling
    fill(buffers[number % len(buffers)], 0, stream.at(range(number * BATCH, (number + 1) * BATCH)))
    return BATCH


_filling: Any = None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="your own images, in train/CLASS/ and val/CLASS/")
    parser.add_argument("--images", type=int, default=4000, help="images to generate; more than a run loads")
    parser.add_argument("--batches", type=int, default=60, help="batches to time in each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="only loaders whose names begin with one of these, such as vit_ipu"
    )
    parser.add_argument("--beside", nargs="*", type=Path, default=[], help="checkouts of other commits of vit_ipu")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
