"""Every `vit-ipu` command in every page is run, with small files in the place of those that it names.

Not run here are commands under torchrun and poprun (tests/backends/test_torchrun.py and test_poprun.py start such
runs), and what needs hardware, a download or another program. `make` targets are checked in tests/test_docs.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Dict, List

import pytest
import torch
import yaml
from helpers import TINY, vit_ipu, write_image_folder
from hub_server import serving_instead_of_the_real_hub
from PIL import Image
from safetensors.torch import save_file

from vit_ipu import convert, train
from vit_ipu.config import ModelConfig
from vit_ipu.model import ViT

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ["model.variant=vit_test", "model.width=32", "model.depth=4", "model.num_heads=2", "model.patch_size=7"]
SMALL += ["model.image_size=28", "model.init=null"]
"""Overrides that make a model small."""
FEW = [
    "data.num_workers=0",
    "run.updates=16",
    "run.epochs=null",
    "run.evaluate_every=null",
    "run.checkpoint_every=null",
]
FEW += ["optim.warmup_updates=0", "optim.warmup_start=null"]
PUBLISHED = "pipeline_configs/mmcls_vit_base_patch16_finetune_224_ipu.yaml"
# Options that are added to a command, or take the place of its own, by what the command contains.
ADDED: Dict[str, List[str]] = {
    "run.updates=1000": ["run.updates=4"],
    "run.updates=20000": ["run.updates=6"],
    PUBLISHED: [
        *SMALL,
        *FEW,
        "data.source=sample",
        "data.path=null",
        "model.num_classes=10",
        "data.num_train=64",
        "data.num_eval=8",
        "pipeline.layers_per_ipu=[1, 1, 1, 1]",
        "pipeline.micro_batch_size=1",
        "pipeline.global_batch_size=28",
        "run.updates=1",
        "pipeline.executable_cache=null",
    ],
    "train quickstart": ["run.updates=4", "run.evaluate_every=null", "run.checkpoint_every=null"]
    + ["optim.warmup_updates=0", "data.num_train=256", "data.num_eval=8"],
    "train pictures.yaml": ["run.epochs=1", "run.evaluate_every=null", "optim.warmup_updates=0"],
    "train pod4.yaml": ["run.evaluate_every=null"],
}
REPLACED = {"CONFIG": "tiny.yaml", "--device cuda": "--device cpu", "--device ipu": "--device ipu-sim"}
REPLACED.update(
    {"/data/imagenet": "divided", "/data/shards": "shards", "hf-hub:google/vit-base-patch16-224": "foreign"}
)
REPLACED.update({"data/drawings": "divided", "data/drawings_shards": "drawings_shards"})
REPLACED["vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth"] = "tiny.safetensors"
"""Hardware, downloads and large data that a test lacks, and what takes their place."""


def commands_of(page: Path) -> List[str]:
    """Returns the commands of the console blocks of a page, as they are written, without comments."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
    return [re.sub(r"\s+#.*$", "", line[2:]) for line in lines if re.match(r"\$ (vit-ipu|python -m vit_ipu) ", line)]


def made_small(command: str) -> List[str]:
    """Returns the arguments of a command after `vit-ipu`, with small files and devices that every machine has."""
    text = re.sub(r"\$\(.*?\)", "--resume", re.split(r"vit-ipu |-m vit_ipu ", command, maxsplit=1)[1])  # a shell's
    for large, small in REPLACED.items():
        text = re.sub(rf"(?<![\w-]){re.escape(large)}(?![\w-])", small, text)
    arguments = shlex.split(text)
    for mark, overrides in ADDED.items():
        if mark in text:
            arguments += [part for override in overrides for part in ("--set", override)]
    return arguments


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Returns a folder with the files that the pages name, as small ones."""
    root = tmp_path_factory.mktemp("pages")
    write_image_folder(root, splits=["pictures"], classes=("cat", "dog"), count=12)
    write_image_folder(root / "divided", classes=("cat", "dog"), count=2)
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    Image.new("RGB", (40, 30), (200, 30, 3)).save(str(root / "photo.jpg"))
    shape = ModelConfig(width=64, depth=6, num_heads=2, mlp_ratio=3.0, patch_size=16, image_size=32, num_classes=10)
    torch.manual_seed(0)
    save_file(ViT(shape).state_dict(), str(root / "vit.safetensors"))
    save_file(ViT(ModelConfig(**TINY["model"])).state_dict(), str(root / "tiny.safetensors"))
    run = train(root / "tiny.yaml", device="cpu", output=root / "base", quiet=True)
    convert(run.path, root / "foreign", "huggingface", quiet=True)
    convert(run.path, root / "B_16.npz", "google", quiet=True)
    return root


@pytest.fixture
def folder(material, empty_folder, monkeypatch):
    """Changes into a folder with the files that the pages name; a hub on this machine takes what commands upload."""
    shutil.copytree(str(material), "here")
    monkeypatch.chdir("here")
    with serving_instead_of_the_real_hub(monkeypatch, empty_folder):
        yield Path()


def test_timm_loads_and_uses_the_export_of_the_first_finetune(folder, monkeypatch, capsys):
    """Runs the page's export and its second block of Python, and compares with `predict`."""
    page = ROOT / "docs" / "first_finetune.md"
    for command in ["vit-ipu init pictures", "vit-ipu train pictures.yaml"]:
        assert vit_ipu(monkeypatch, capsys, *made_small(command))[0] == 0
    exports = [command for command in commands_of(page) if command.endswith("--to timm")]
    shown = re.findall(r"^load it with: (.*)$", page.read_text(encoding="utf-8"), re.M)
    assert len(exports) == len(shown) == 2
    for command, code in zip(exports, shown):
        code_of_small, out, err = vit_ipu(monkeypatch, capsys, *made_small(command))
        assert (code_of_small, err) == (0, "")
        assert out.splitlines()[-1] == "load it with: " + code.replace("num_classes=3", "num_classes=2")
    block = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)[1]
    exec(compile(block, "first_finetune.md", "exec"), {})
    printed = [line.split(" ") for line in capsys.readouterr().out.splitlines()]
    out = vit_ipu(monkeypatch, capsys, "predict", "runs/pictures", "pictures/cat/1.png", "--json")[1]
    expected = {row["name"]: row["probability"] for row in json.loads(out)["predictions"][0]["classes"]}
    assert {name: float(score) for name, score in printed} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_their_order(page, folder, monkeypatch, capsys):
    for command in commands_of(page):
        arguments = made_small(command)
        if "runs/mine" in arguments and ("--resume" in arguments or arguments[0] in ("convert", "evaluate", "predict")):
            start_run(monkeypatch, capsys)
        code, out, err = vit_ipu(monkeypatch, capsys, *arguments)
        assert code == 0, (command, arguments, out, err)


def start_run(monkeypatch, capsys) -> None:
    """Trains runs/mine, which the pages name, if it is not there."""
    if not Path("runs/mine").exists():
        assert vit_ipu(monkeypatch, capsys, "train", "tiny.yaml", "--device", "cpu", "--output", "runs/mine")[0] == 0


def test_a_command_that_shortens_the_run_of_init_shortens_its_warmup():
    of_init = re.compile(r"train (pictures|pod4|gpu|finetune)\.yaml .*run\.(epochs|updates)=")
    found = [command for page in PAGES for command in commands_of(page) if of_init.search(command)]
    assert found
    assert [command for command in found if "optim.warmup_updates=" not in command] == []


def test_the_commands_of_the_pages_are_found():
    assert sum(len(commands_of(page)) for page in PAGES) >= 30


def test_the_pictures_of_the_first_finetune_are_a_folder_for_init(empty_folder, monkeypatch, capsys):
    page = (ROOT / "docs" / "first_finetune.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    exec(compile(code, "first_finetune.md", "exec"), {})
    assert {path.name: len(list(path.iterdir())) for path in Path("pictures").iterdir()} == {
        "Bag": 400,
        "Sandal": 400,
        "Sneaker": 400,
    }
    code, out, err = vit_ipu(monkeypatch, capsys, "init", "pictures")
    assert (code, err) == (0, "")
    assert "pictures: 3 classes, 1,080 images to train on (360 a class), 120 held out" in out
