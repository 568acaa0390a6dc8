"""The loaders of torchvision, timm and webdataset, with which data_loading.py compares vit_ipu's."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Callable, Iterator

import torch

SIZE, BATCH = 224, 64


def classic_recipe(*, in_bytes: bool = False) -> Any:
    from torchvision import transforms as t

    end = [t.PILToTensor()] if in_bytes else [t.ToTensor(), t.Normalize([0.5] * 3, [0.5] * 3)]
    return t.Compose([t.RandomResizedCrop(SIZE), t.RandomHorizontalFlip(), *end])


def torchvision_batches(root: Path, recipe: Any, workers: int, batches: int, **options: Any) -> Iterator[int]:
    from torchvision.datasets import ImageFolder

    return limited(lambda: ImageFolder(str(root / "train"), recipe, **options), workers, batches)


def torchvision_v2_batches(root: Path, workers: int, batches: int, *, in_bytes: bool = False) -> Iterator[int]:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2 as t

    crop = t.RandomResizedCrop(SIZE, antialias=True)
    normalize = [t.ToDtype(torch.float32, scale=True), t.Normalize([0.5] * 3, [0.5] * 3)]
    recipe = t.Compose([crop, t.RandomHorizontalFlip(), *([] if in_bytes else normalize)])

    def load(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    return torchvision_batches(root, recipe, workers, batches, loader=load)


def limited(open_dataset: Callable[[], Any], workers: int, batches: int) -> Iterator[int]:
    """Loads with torch's DataLoader, shuffled."""
    loader = torch.utils.data.DataLoader(
        open_dataset(), BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    return over_epochs(loader, batches)


def over_epochs(loader: Any, batches: int) -> Iterator[int]:
    """Yields the sizes of `batches` batches, over as many epochs as needed."""
    endless = (images for _ in itertools.count() for images, _ in loader)
    return (len(images) for images in itertools.islice(endless, batches))


def timm_batches(root: Path, workers: int, batches: int) -> Iterator[int]:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("folder", str(root / "train")),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        device=torch.device("cpu"),
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=True,
    )
    return over_epochs(loader.loader, batches)  # without its prefetcher, which normalises in the main process


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
    """Lets each worker read all shards: there are few, and only the speed matters here."""
    yield from urls
