"""Images per second of this loader beside its peers', over the same JPEGs in one run.

JPEGs of 500 x 375 pixels become batches of random resized crops of 224 with flips. The peers: torchvision's ImageFolder
and DataLoader with the classic Pillow recipe and with the v2 tensor recipe, timm's create_loader, and webdataset over
tar shards. Ours reads the folder, and shards of `vit-ipu pack` whose short side is 256. All take turns, with 1 and with
2 worker processes; the rate of decoding the same bytes whole, in one process, is the limit.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import simplejpeg
import torch
from photographs import write_folder
from record import write_record

from vit_ipu.backends import resolve_device
from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.data.loader import TrainingLoader
from vit_ipu.data.sources import open_source
from vit_ipu.pipeline import BatchPlan

SIZE, BATCH = 224, 64
CLASSIC = "torchvision, classic"
Loader = Callable[[int, int], Iterator[int]]
"""From a number of workers and a number of batches: the size of each batch."""


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        root, shards = Path(folder) / "images", Path(folder) / "shards"
        write_folder(root, arguments.images)
        pack = [sys.executable, "-m", "vit_ipu", "pack", str(root), str(shards), "--short-side", "256"]
        subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
        loaders = all_loaders(root, shards)
        rates: Dict[str, List[float]] = {}
        for _ in range(arguments.runs):  # taking turns, so that what else the machine does meets all
            for workers in arguments.workers:
                for name, loader in loaders.items():
                    key = "{}, {} workers".format(name, workers)
                    rates.setdefault(key, []).append(rate(loader(workers, arguments.batches + 2)))
            for name, path in (("JPEG 500 x 375", root), ("packed, short side 256", shards)):
                rates.setdefault("decoding alone, " + name, []).append(decoding_rate(jpegs(path)))
        report(rates, our_config(root, "imagefolder", 1))


def rate(sizes: Iterator[int]) -> float:
    """Images per second after the first two batches."""
    next(sizes), next(sizes)
    start = time.perf_counter()
    count = sum(sizes)
    return count / (time.perf_counter() - start)


def report(rates: Dict[str, List[float]], config: Config) -> None:
    median = {name: statistics.median(found) for name, found in rates.items()}
    workers = sorted({name.split(", ")[-1] for name in rates if name.endswith("workers")})
    rows = [
        [
            name,
            "{:,.0f}".format(median[name]),
            "{:,.0f} to {:,.0f}".format(min(found), max(found)),
            "{:.2f}".format(median[name] / median["{}, {}".format(CLASSIC, name.split(", ")[-1])])
            if name.endswith("workers")
            else "",
        ]
        for name, found in rates.items()
    ]
    one = workers[0]
    peers = [name for name in median if name.endswith(one) and not name.startswith(("vit_ipu", "webdataset"))]
    ratios = {
        "folder over classic": median["vit_ipu, folder, " + one] / median["{}, {}".format(CLASSIC, one)],
        "folder over fastest peer": median["vit_ipu, folder, " + one] / max(median[name] for name in peers),
        "packed over classic": median["vit_ipu, packed, " + one] / median["{}, {}".format(CLASSIC, one)],
        "packed over webdataset": median["vit_ipu, packed, " + one] / median["webdataset, packed, " + one],
        "folder over decoding": median["vit_ipu, folder, " + one] / median["decoding alone, JPEG 500 x 375"],
        "packed over decoding": median["vit_ipu, packed, " + one] / median["decoding alone, packed, short side 256"],
    }
    if len(workers) > 1:
        for name in ("folder", "packed"):
            key = "vit_ipu, {}, ".format(name)
            ratios["2 workers over 1, " + name] = median[key + workers[1]] / median[key + workers[0]]
    lines = ["{}: {:.2f}.".format(name, value) for name, value in ratios.items()]
    write_record(
        "data-loading",
        "Images per second of loading, 500 x 375 JPEG to 224, random resized crop and flip",
        resolve_device("cpu"),
        config,
        ["\n".join("- " + line for line in lines)],
        (("loader", "images/s (median)", "spread", "x classic"), rows),
        {"ratios": ratios, "images_per_second": rates},
    )


# -------------------------------------------------------------------------------------- the loaders


def all_loaders(root: Path, shards: Path) -> Dict[str, Loader]:
    return {
        CLASSIC: lambda workers, batches: torchvision_batches(root, classic_recipe(), workers, batches),
        "torchvision, v2 tensors": lambda workers, batches: torchvision_v2_batches(root, workers, batches),
        "timm": lambda workers, batches: timm_batches(root, workers, batches),
        "webdataset, packed": lambda workers, batches: webdataset_batches(shards, workers, batches),
        "vit_ipu, folder": lambda workers, batches: our_batches(root, "imagefolder", workers, batches),
        "vit_ipu, packed": lambda workers, batches: our_batches(shards, "shards", workers, batches),
    }


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


def classic_recipe() -> Any:
    from torchvision import transforms as t

    normalize = t.Normalize([0.5] * 3, [0.5] * 3)
    return t.Compose([t.RandomResizedCrop(SIZE), t.RandomHorizontalFlip(), t.ToTensor(), normalize])


def torchvision_batches(root: Path, recipe: Any, workers: int, batches: int, **options: Any) -> Iterator[int]:
    from torchvision.datasets import ImageFolder

    return limited(lambda: ImageFolder(str(root / "train"), recipe, **options), workers, batches)


def torchvision_v2_batches(root: Path, workers: int, batches: int) -> Iterator[int]:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2 as t

    crop = t.RandomResizedCrop(SIZE, antialias=True)
    normalize = [t.ToDtype(torch.float32, scale=True), t.Normalize([0.5] * 3, [0.5] * 3)]
    recipe = t.Compose([crop, t.RandomHorizontalFlip(), *normalize])

    def load(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    return torchvision_batches(root, recipe, workers, batches, loader=load)


def limited(open_dataset: Callable[[], Any], workers: int, batches: int) -> Iterator[int]:
    """torch's DataLoader, shuffled."""
    loader = torch.utils.data.DataLoader(
        open_dataset(), BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    return over_epochs(loader, batches)


def over_epochs(loader: Any, batches: int) -> Iterator[int]:
    """The sizes of so many batches, over as many epochs as it takes."""
    endless = (images for _ in itertools.count() for images, _ in loader)
    return (len(images) for images in itertools.islice(endless, batches))


def timm_batches(root: Path, workers: int, batches: int) -> Iterator[int]:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("folder", str(root / "train")),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=True,
    )
    return over_epochs(loader, batches)


def webdataset_batches(shards: Path, workers: int, batches: int) -> Iterator[int]:
    import webdataset

    paths = sorted(str(path) for path in (shards / "train").glob("*.tar"))
    dataset = (
        webdataset.WebDataset(paths, shardshuffle=False, empty_check=False, workersplitter=_all_shards)
        .shuffle(100)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(classic_recipe(), int)
        .batched(BATCH)
        .repeat()
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)
    for number, (images, _) in enumerate(loader):
        if number == batches:
            return
        yield len(images)


def _all_shards(urls: Iterator[Any]) -> Iterator[Any]:
    """Each worker reads all of the few shards: what matters here is its speed."""
    yield from urls


# ------------------------------------------------------------------------------------------- limit


def jpegs(root: Path) -> List[bytes]:
    """The bytes that are decoded: of a folder of classes, or of packed shards."""
    source = "imagefolder" if list((root / "train").glob("*/*.jpg")) else "shards"
    config = our_config(root, source, 0)
    images = open_source(config.data, config.model, "train")
    return [images.picture(index).data for index in range(min(len(images), 256))]


def decoding_rate(files: List[bytes]) -> float:
    """Whole images per second, by the decoder that this loader uses."""
    start = time.perf_counter()
    for data in files:
        simplejpeg.decode_jpeg(data)
    return len(files) / (time.perf_counter() - start)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=30, help="to time in each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
