"""Messages of the Python functions name arguments, not options of commands."""

from __future__ import annotations

import inspect

import pytest

import vit_ipu
from vit_ipu.errors import ConfigError, RunFailed
from vit_ipu.option_names import FLAGS, VALUES, for_python, in_python


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("--set run.x=1: unknown key", "override run.x=1: unknown key"),
        ("continue it with --resume, or give another --output", "continue it with resume=True, or give another output"),
        ("torch sees no CUDA device; use --device cpu", "torch sees no CUDA device; use device='cpu'"),
        ("--device ipu-sim:cuda: torch sees", "device='ipu-sim:cuda': torch sees"),
        ("--device tpu: unknown", "device tpu: unknown"),
        ("--device ipus: unknown", "device ipus: unknown"),
        ("read it with --num-heads 3", "read it with num_heads=3"),
        ("give --num-heads", "give num_heads"),
        ("convert it --to huggingface or onnx", "convert it to='huggingface' or onnx"),
        ("--allow-config-change run.seed: expected", "allow_config_change run.seed: expected"),
        ("or --trust-pickle is given", "or trust_pickle=True is given"),
        ("list the shards again with --rescan", "list the shards again with rescan=True"),
        ("change --nproc-per-node, or --num-replicas", "change --nproc-per-node, or --num-replicas"),
        ("--output-folder and a--output stay", "--output-folder and a--output stay"),
    ],
)
def test_options_become_arguments(message, expected):
    assert in_python(message) == expected


def test_every_option_that_is_an_argument_is_known():
    arguments = set()
    for name in ("train", "evaluate", "predict", "load_model", "plan", "convert"):
        arguments |= set(inspect.signature(getattr(vit_ipu, name)).parameters)
    known = {option.replace("-", "_") for option in (*FLAGS, *VALUES)}
    assert known <= arguments
    assert arguments - known == {"config", "overrides", "quiet", "images", "top", "source", "target"}


@pytest.mark.parametrize("kind", [ConfigError, RunFailed])
def test_an_error_keeps_its_class_and_its_cause(kind):
    @for_python
    def fail():
        """Fails."""
        raise kind("free some space, and continue with --resume") from OSError("disk")

    with pytest.raises(kind, match="^free some space, and continue with resume=True$") as caught:
        fail()
    assert isinstance(caught.value.__cause__, OSError)
    assert fail.__doc__ == "Fails."
