"""Bad run folders, options and names."""

from __future__ import annotations

import os

import yaml
from bad_files import DEEP, TRAIN, a_file, fifo, link, several, sparse
from helpers import tiny_values

CASES = {}
"""Cases of test_bad_inputs.py by their names."""

ENVIRONMENTS = {
    "deep": DEEP,
    "empty": "",
    "a list": "[]",
    "with only one key": '{"simulated": false}',
    "with versions of text": '{"simulated": false, "device": "cpu", "versions": "1"}',
    "with a command of numbers": (
        '{"simulated": 1, "device": 3, "hardware": 3, "versions": {}, "compute": 1, "vit_ipu": 1, "python": 1, '
        '"commit": 1, "command": [1], "time": 1}'
    ),
    "of 5,000 digits": '{"simulated": ' + "9" * 5_000 + "}",
    "not UTF-8": b"\xff\xfe",
}
CONFIG = a_file("run/config.yaml", yaml.safe_dump(tiny_values()))
for name, content in ENVIRONMENTS.items():
    CASES["environment.json " + name] = (
        several(CONFIG, a_file("run/environment.json", content)),
        ["report", "run"],
        "environment.json is damaged",
    )
for name, make in {
    "a pipe": fifo("run/environment.json"),
    "endless": link("run/environment.json", "/dev/zero"),
    "of 6 GB": sparse("run/environment.json"),
}.items():
    CASES["environment.json that is " + name] = (make, ["report", "run"], "environment.json is damaged")

# ----------------------------------------------------------------------------- command line and names

COMMANDS = {
    "nothing": (["report"], "RUN"),
    "unknown command": (["\x1b[2J"], "\\x1b[2J"),
    "command of 100,000 letters": (["t" * 100_000], "..."),
    "device of 100,000 letters": ([*TRAIN[:2], "--device", "d" * 100_000], "..."),
    "device with commands of a terminal": ([*TRAIN[:2], "--device", "\x1b]0;title\x07"], "\\x1b]0;title\\x07"),
    "run with a line break": (["report", "a\nb"], "not a run folder"),
    "run with commands of a terminal": (["report", "\x1b[2J"], "\\x1b[2J"),
    "run that is not UTF-8": (["report", os.fsdecode(b"\xff\xfe")], "\\udcff\\udcfe"),
    "config that is not UTF-8": (["plan", os.fsdecode(b"\xff.yaml")], "\\udcff.yaml"),
    "weights that are not UTF-8": (["convert", os.fsdecode(b"\xff.pth"), "out", "--to", "native"], "\\udcff.pth"),
    "image that is not UTF-8": (["predict", "RUN", os.fsdecode(b"\xff.png"), "--device", "cpu"], "\\udcff.png"),
    "steps of 5,000 digits": (["benchmark", "tiny.yaml", "--steps", "9" * 4_000], "--steps"),
    "steps that are a word": (["benchmark", "tiny.yaml", "--steps", "many"], "--steps"),
    "quality above 100": (["pack", "images", "out", "--quality", "101"], "--quality"),
    "shard size of nothing": (["pack", "images", "out", "--shard-size", "0"], "--shard-size"),
    "shard size beyond floats": (["pack", "images", "out", "--shard-size", "9" * 400], "--shard-size"),
    "shard size of 100,000 digits": (["pack", "images", "out", "--shard-size", "9" * 100_000], "--shard-size"),
    "shard size that is a word": (["pack", "images", "out", "--shard-size", "big"], "--shard-size"),
    "workers below one": (["pack", "images", "out", "--workers", "0"], "--workers"),
    "unknown format": (["convert", "RUN", "out", "--to", "\x1b[2J"], "\\x1b[2J"),
    "heads of no model": (["predict", "RUN", "x.png", "--num-heads", "0"], "--num-heads"),
    "sha256 of letters": (["convert", "w.pth", "out", "--to", "native", "--sha256", "x" * 100_000], "hexadecimal"),
    "scheme that is unknown": (["convert", "ftp://x/y.pth", "out", "--to", "native"], "use https://"),
    "address of 100,000 letters": (["convert", "https://" + "a" * 100_000, "out", "--to", "native"], "sha256"),
    "hub without a name": (["convert", "hf-hub:../../etc", "out", "--to", "native"], "OWNER/NAME"),
    "home of nobody": (["convert", "~nobody-here/w.pth", "out", "--to", "native"], "cannot expand ~"),
    "name of 100,000 letters": (["plan", "n" * 100_000], "too long"),
    "models of no pixels": (["models", "--image-size", "0"], "--image-size"),
    "target that is there": (["convert", "RUN", "tiny.yaml", "--to", "native"], "tiny.yaml"),
}
for name, (command, expected) in COMMANDS.items():
    CASES["command: " + name] = (None, command, expected)
