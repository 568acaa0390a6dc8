"""docs/troubleshooting.md quotes what the program prints: each situation is made here, and the quote compared.

Numbers of a quote, and paths of caches, may differ: a loss depends on the version of torch.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Dict, List

import pytest
import torch
import yaml
from helpers import TINY, tiny_config, vit_ipu, write_image_folder
from PIL import Image
from safetensors.torch import save_file

from vit_ipu.backends.ipu.availability import ipu_problem
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.check import check_module
from vit_ipu.cli.console import error_line
from vit_ipu.config import ModelConfig
from vit_ipu.data.loading.buffers import Buffer
from vit_ipu.errors import RunFailed
from vit_ipu.model import ViT
from vit_ipu.runs import logger

PAGE = Path(__file__).parent.parent.parent / "docs" / "troubleshooting.md"
SITUATIONS: Dict[str, Callable] = {}
"""Functions that make a situation and return the lines that are printed, by the page's heading."""


class Shell:
    """A folder with small files, and the command."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self._capsys = monkeypatch, capsys

    def printed(self, *arguments) -> List[str]:
        """Runs a command and returns the lines that it prints on both streams."""
        _, out, err = vit_ipu(self.monkeypatch, self._capsys, *arguments)
        return [*out.splitlines(), *err.splitlines()]

    def error(self, *arguments) -> List[str]:
        """Runs a command and returns its error."""
        code, _, err = vit_ipu(self.monkeypatch, self._capsys, *arguments)
        assert code in (1, 2), err
        return [line for line in err.splitlines() if line.startswith("vit-ipu: ")]


@pytest.fixture
def shell(monkeypatch, capsys, empty_folder):
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    write_image_folder(empty_folder, splits=["pictures"], classes=("cat", "dog"), count=12)
    Path("cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    return Shell(monkeypatch, capsys)


def situation(heading: str):
    """Registers a function under the heading that describes its situation."""

    def register(function):
        SITUATIONS[heading] = function
        return function

    return register


# ----------------------------------------------------------------------------------------------- IPUs


@situation("No PopTorch")
def no_poptorch(shell):
    shell.monkeypatch.delitem(sys.modules, "poptorch", raising=False)
    shell.monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return shell.error("train", "tiny.yaml", "--device", "ipu")


@situation("Another torch than PopTorch's")
def another_torch(shell):
    shell.monkeypatch.delitem(sys.modules, "poptorch", raising=False)
    shell.monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    shell.monkeypatch.setattr(torch, "__version__", "2.4.0+cpu")
    return shell.error("train", "tiny.yaml", "--device", "ipu")


@situation("No IPU")
def no_ipu(shell):
    shell.monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    shell.monkeypatch.setattr(torch, "__version__", "2.0.1")
    poptorch = SimpleNamespace(ipuHardwareIsAvailable=lambda: False)
    shell.monkeypatch.setitem(sys.modules, "poptorch", poptorch)
    return [f"vit-ipu: --device ipu: {ipu_problem()}"]


@situation("A GPU's config on IPUs")
def a_gpus_config(shell):
    shell.printed("init", "pictures", "--device", "cuda")
    return shell.error("train", "pictures.yaml", "--device", "ipu-sim")


@situation("GELU")
def gelu(shell):
    return shell.error("train", "tiny.yaml", "--device", "ipu-sim", "--set", "model.gelu=erf")


@situation("bfloat16")
def bfloat16(shell):
    return shell.error("train", "tiny.yaml", "--device", "ipu-sim", "--set", "precision.compute=bfloat16")


@situation("Too few micro-batches for the pipeline")
def too_few(shell):
    return shell.error("train", "tiny.yaml", "--device", "ipu-sim", "--set", "pipeline.micro_batch_size=8")


@situation("Three IPUs")
def three_ipus(shell):
    options = ["--set", "pipeline.layers_per_ipu=[1, 1, 2]"]
    return shell.error("train", "tiny.yaml", "--device", "ipu-sim", *options)


@situation("An operation that PopTorch refuses")
def an_operation(shell):
    class Model(torch.nn.Module):
        def forward(self, x):
            return x[x > 0].sum()

    found = check_module(Model(), torch.rand(4, 4)).findings[0]
    return [found.operation, found.reason, found.remedy]


@situation("Out of memory on a tile")
def out_of_memory_on_a_tile(shell):
    sizes = ["pipeline.micro_batch_size=64", "pipeline.global_batch_size=32768", "pipeline.recompute=none"]
    options = [part for size in sizes for part in ("--set", size)]
    lines = shell.printed("plan", "mmcls_vit_base_patch16_finetune_224_ipu", *options)
    start = next(place for place, line in enumerate(lines) if "not to fit" in line)
    return lines[start : start + 2]


# -------------------------------------------------------------------------------------------- numbers


@situation("The loss is not a number")
def not_a_number(shell):
    judge = logger.problem_of_loss
    no_number = SimpleNamespace(loss=float("nan"), losses=(float("nan"),))
    shell.monkeypatch.setattr(logger, "problem_of_loss", lambda result, *others: judge(no_number, *others))
    return shell.error("train", "tiny.yaml", "--device", "cpu", "--output", "runs/mine")


@situation("The loss explodes")
def explodes(shell):
    options = ["--set", "optim.learning_rate=1e5", "--output", "runs/mine"]
    return shell.error("train", "tiny.yaml", "--device", "cpu", *options)


@situation("float16 overflows")
def overflows(shell):
    options = ["--set", "precision.compute=float16", "--set", "precision.loss_scale=1e6", "--set", "run.updates=1"]
    options += ["--numerics", "ipu", "--output", "runs/float16"]
    lines = shell.printed("train", "tiny.yaml", "--device", "ipu-sim", *options)
    return [line for line in lines if line.startswith("warning: float16")]


# ------------------------------------------------------------------------------------- memory and GPUs


@situation("No CUDA device")
def no_cuda(shell):
    shell.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return shell.error("train", "tiny.yaml", "--device", "cuda")


@situation("CUDA out of memory")
def cuda_out_of_memory(shell):
    backend = NativeBackend.__new__(NativeBackend)
    settings = {"_config": tiny_config(), "_device": "cuda:0", "micro_batch_size": 4, "instances": SimpleNamespace()}
    backend.__dict__.update(settings)
    backend.instances.count = 1
    with pytest.raises(RunFailed) as caught:
        backend._lower_micro_batch_size(torch.cuda.OutOfMemoryError())
    return [f"vit-ipu: {caught.value}"]


@situation("Not enough memory elsewhere")
def not_enough_memory(shell):
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB")
    return [f"vit-ipu: {error_line(error)}"]


@situation("Shared memory")
def shared_memory(shell):
    def fail(tensor):
        raise RuntimeError(f"unable to write to file </torch_1_2_3>: {os.strerror(errno.ENOSPC)} (28)")

    shell.monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(RunFailed) as caught:
        Buffer.of(1024, 8, torch.uint8, shared=True)
    return [f"vit-ipu: {caught.value}"]


# --------------------------------------------------------------------------------------------- images


def with_pictures(*options: str) -> List[str]:
    values = dict(TINY, data={"source": "imagefolder", "path": "pictures", "holdout": 0.2, "crop": "center"})
    values = dict(values, model=dict(TINY["model"], num_classes=2))
    Path("pictures.yaml").write_text(yaml.safe_dump(values))
    return ["train", "pictures.yaml", "--device", "cpu", *options]


@situation("Another number of classes")
def number_of_classes(shell):
    return shell.error(*with_pictures("--set", "model.num_classes=3"))


@situation("Other classes in val/")
def other_classes(shell):
    write_image_folder(Path("divided"), classes=("cat", "dog"), count=2)
    Path("divided/val/dog").rename("divided/val/bird")
    return shell.error(*with_pictures("--set", "data.path=divided", "--set", "data.holdout=null"))


@situation("A damaged image")
def damaged_image(shell):
    for path in Path("pictures/cat").iterdir():
        path.write_bytes(b"not an image")
    return shell.error(*with_pictures("--set", "data.num_workers=0"))


# ------------------------------------------------------------------------------------- configs and runs


@situation("An unknown key")
def unknown_key(shell):
    return shell.error("train", "tiny.yaml", "--set", "optim.lr=0.01")


@situation("The run folder is taken")
def folder_is_taken(shell):
    shell.printed("train", "tiny.yaml", "--device", "cpu", "--output", "runs/mine")
    return shell.error("train", "tiny.yaml", "--device", "cpu", "--output", "runs/mine")


@situation("Resume with another config")
def another_config(shell):
    shell.printed("train", "tiny.yaml", "--device", "cpu", "--output", "runs/mine")
    options = ["--resume", "--set", "optim.learning_rate=0.01", "--output", "runs/mine"]
    return shell.error("train", "tiny.yaml", "--device", "cpu", *options)


# -------------------------------------------------------------------------------------------- weights


@situation("Pickled weights")
def pickled_weights(shell):
    torch.save({}, "vit.pth")
    shell.monkeypatch.setattr(torch, "__version__", "2.0.1+cpu")
    return shell.error("predict", "vit.pth", "photo.jpg")


@situation("The number of heads")
def number_of_heads(shell):
    shape = ModelConfig(width=48, depth=2, num_heads=4, patch_size=16, image_size=32, num_classes=2)
    save_file(ViT(shape).state_dict(), "vit.safetensors")
    Image.new("RGB", (8, 8)).save("photo.png")
    return shell.error("predict", "vit.safetensors", "photo.png", "--device", "cpu")


@situation("The hub cannot be reached")
def unreachable_hub(shell):
    import huggingface_hub
    from huggingface_hub import constants, errors

    def fail(*arguments, **options):
        raise errors.LocalEntryNotFoundError("no network")

    shell.monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    shell.monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *arguments, **options: None)
    shell.monkeypatch.setattr(constants, "HF_HUB_CACHE", "cache/hub")
    shell.monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return shell.error("predict", "hf-hub:google/vit-base-patch16-224", "photo.jpg")


@situation("huggingface_hub is missing")
def no_hub(shell):
    shell.monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return shell.error("predict", "hf-hub:google/vit-base-patch16-224", "photo.jpg")


# ------------------------------------------------------------------------------------------- the page


def quotes() -> Dict[str, List[str]]:
    """Returns the quoted lines of the page by the heading above them; a quote's line breaks are those of the page."""
    found = {}
    for section in re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        heading, _, text = section.partition("\n")
        block = re.search(r"```text\n(.*?)```", text, re.S)
        if block is not None:
            found[heading.strip()] = block[1].splitlines()
    return found


def comparable(lines: List[str]) -> str:
    """Returns lines as one, with any number in the place of each number."""
    return re.sub(r"\d[\d,.]*(e[+-]?\d+)?", "0", " ".join(" ".join(lines).split()))


def test_the_page_quotes_these_situations():
    assert list(quotes()) == list(SITUATIONS)


@pytest.mark.parametrize("heading", SITUATIONS)
def test_a_quote_is_what_the_program_prints(heading, shell):
    found = SITUATIONS[heading](shell)
    assert found
    assert comparable(found) == comparable(quotes()[heading])


def test_every_situation_says_why_and_what_to_do():
    for section in re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        heading, _, text = section.partition("\n")
        assert len(re.sub(r"```.*?```", "", text, flags=re.S).split()) >= 12, heading
