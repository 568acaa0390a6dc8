"""State dicts in files of torch.save: which of their values are the tensors, and what becomes of the others."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import pytest
import torch
from helpers import equal_states
from safetensors.torch import save_file
from untrusted_files import WEIGHTS, refused, saved

from vit_ipu.weights.tensor_files import read_tensors


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pickles_come_back_as_stored(tmp_path, safe_torch, suffix):
    found = read_tensors(saved(tmp_path / ("a" + suffix), OrderedDict(WEIGHTS)))
    assert equal_states(found.tensors, WEIGHTS)
    assert found.metadata == {}


def test_parameters_and_other_memory_layouts_become_plain_contiguous_tensors(tmp_path, safe_torch):
    kernel = torch.randn(2, 3, 4, 5)
    state = {"a": torch.nn.Parameter(torch.ones(2)), "b": kernel.contiguous(memory_format=torch.channels_last)}
    found = read_tensors(saved(tmp_path / "a.pth", state)).tensors
    assert type(found["a"]) is torch.Tensor
    assert not found["a"].requires_grad
    assert found["b"].is_contiguous()
    assert torch.equal(found["b"], kernel)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_values_that_programs_save_beside_the_weights_become_metadata(tmp_path, safe_torch, key):
    meta = {"CLASSES": ["cat", "dog"], "epoch": 3, "loss": 0.5, "sizes": ((1, 2), None), 7: {"x": True}}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}}
    found = read_tensors(
        saved(tmp_path / "a.pth", {"meta": meta, key: WEIGHTS, "epoch": 9, "optimizer": optimizer, 5: 6})
    )
    assert equal_states(found.tensors, WEIGHTS)
    assert found.metadata == {"meta": meta, "epoch": 9}


def test_a_state_dict_may_have_other_values_beside_its_tensors(tmp_path, safe_torch):
    found = read_tensors(saved(tmp_path / "a.pth", dict(WEIGHTS, model={"name": "vit"}, epoch=3)))
    assert equal_states(found.tensors, WEIGHTS)
    assert found.metadata == {"model": {"name": "vit"}, "epoch": 3}


def test_the_first_wrapper_that_holds_tensors_is_taken(tmp_path, safe_torch):
    value = {"model": {"a": torch.ones(1)}, "state_dict": {"b": torch.ones(1)}, "module": {"c": torch.ones(1)}}
    assert list(read_tensors(saved(tmp_path / "a.pth", value)).tensors) == ["b"]


def endless():
    value = []
    value.append({"again": value})
    return value


def doubled():
    value = "ha"
    for _ in range(30):
        value = [value, value]
    return value


def deep():
    value = "ha"
    for _ in range(100):
        value = {"in": (value,)}
    return value


@pytest.mark.parametrize("nested", [endless, doubled, deep])
def test_metadata_without_bounds_is_left_out(tmp_path, safe_torch, nested):
    value = {"model": WEIGHTS, "good": 1, "bad": nested()}
    assert read_tensors(saved(tmp_path / "a.pth", value)).metadata == {"good": 1}


@pytest.mark.parametrize("prefixes", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_every_name_are_stripped(tmp_path, safe_torch, prefixes):
    state = {prefixes + name: tensor for name, tensor in WEIGHTS.items()}
    counted = dict(state, n_averaged=torch.tensor(3))
    assert equal_states(read_tensors(saved(tmp_path / "a.pth", counted)).tensors, WEIGHTS)
    save_file(state, str(tmp_path / "a.safetensors"))
    assert equal_states(read_tensors(tmp_path / "a.safetensors").tensors, WEIGHTS)


def test_a_prefix_of_only_some_names_is_kept(tmp_path, safe_torch):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert equal_states(read_tensors(saved(tmp_path / "a.pth", state)).tensors, state)


@pytest.mark.parametrize("name", ["num_batches_tracked", "bn.num_batches_tracked", "n_averaged", "step"])
def test_counters_are_left_out(tmp_path, safe_torch, name):
    state = {"a": torch.ones(1), name: torch.tensor(3)}
    assert list(read_tensors(saved(tmp_path / "a.pth", state)).tensors) == ["a"]
    save_file(state, str(tmp_path / "a.safetensors"))
    assert list(read_tensors(tmp_path / "a.safetensors").tensors) == ["a"]


STRANGE_TENSORS = [
    (torch.ones(2, dtype=torch.int64), "w is int64: weights are float16, bfloat16, float32 or float64"),
    (torch.tensor(3), "w is int64"),
    (torch.ones(2, dtype=torch.bool), "w is bool"),
    (torch.ones(2, dtype=torch.complex64), "w is complex64"),
    (torch.ones(2, 2).to_sparse(), "w is sparse float32"),
    (torch.empty(1 << 40, 1 << 10, device="meta"), "w is meta float32"),
    (torch.ones(1).expand(1 << 30, 10), r"w of shape \(1073741824, 10\) would take 42949672960 bytes, but has 4"),
    (torch.tensor([1.0, float("nan")]), "w holds NaN or infinity: take an earlier checkpoint"),
    (torch.tensor([1.0, -float("inf")], dtype=torch.bfloat16), "w holds NaN or infinity"),
    ([torch.ones(2)], "'w' is a list, not a tensor by its name"),
]


@pytest.mark.parametrize(("tensor", "message"), STRANGE_TENSORS)
def test_strange_tensors_are_refused(tmp_path, safe_torch, tensor, message):
    refused(saved(tmp_path / "a.pth", {"model": {"good": torch.ones(1), "w": tensor}}), message)


def test_quantized_tensors_are_refused(tmp_path, safe_torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
        # Whether torch's unpickler admits them depends on the version.
        refused(saved(tmp_path / "a.pth", {"w": tensor}), "w is quantized qint8|asks for torch._utils._rebuild_qtensor")


def test_names_that_are_not_strings_are_refused(tmp_path, safe_torch):
    refused(saved(tmp_path / "a.pth", {3: torch.ones(1)}), "3 is a Tensor, not a tensor by its name")


NO_TENSORS = [{}, {"epoch": 3}, [], 7, {"a": [{"b": [{"c": 1}]}]}, [[]] * 20_000]
NO_NAMES = [torch.ones(2), [torch.ones(2)]]


@pytest.mark.parametrize("value", [*NO_TENSORS, *NO_NAMES])
def test_values_without_named_tensors_are_refused(tmp_path, safe_torch, value):
    refused(saved(tmp_path / "a.pth", value), "it holds no tensors")


def test_tensors_that_would_grow_when_copied_are_refused(tmp_path, safe_torch):
    storage = torch.randn(100, 100)
    tied = {"a": storage, "b": storage, "c": storage.t()}
    assert len(read_tensors(saved(tmp_path / "a.pth", tied)).tensors) == 3
    overlapping = {str(number): storage.t() for number in range(50)}
    refused(saved(tmp_path / "a.pth", overlapping), "its tensors overlap and would take 2000000 bytes")


def test_names_cannot_write_to_the_terminal(tmp_path, safe_torch):
    state = {"a\x1b[2J\nb" + "c" * 5000: torch.ones(2, dtype=torch.int8)}
    line = refused(saved(tmp_path / "a.pth", state), r"a\\x1b\[2J bccc")
    assert len(line) < 600 + len(str(tmp_path))


DEEPER = [
    (lambda state: {"model": {"state_dict": state}}, r"\['model'\]\['state_dict'\]"),
    (lambda state: [state], r"\[0\]"),
    (lambda state: (3, {"a": state}), r"\[1\]\['a'\]"),
    (lambda state: {"checkpoint": {"epoch": 3, "net": OrderedDict(state)}}, r"\['checkpoint'\]\['net'\]"),
]


@pytest.mark.parametrize(("nest", "place"), DEEPER)
def test_the_place_of_tensors_that_are_deeper_is_named(tmp_path, safe_torch, nest, place):
    message = f"its tensors are deeper, in {place}: save that state dict alone with torch.save"
    refused(saved(tmp_path / "a.pth", nest(WEIGHTS)), message)


def test_many_references_to_large_values_are_searched_once(tmp_path, safe_torch):
    """Covers pickles of a megabyte in which a search of every reference would look at 10 ** 10 values."""
    large = {number: number for number in range(100_000)}
    saved(tmp_path / "a.pth", dict.fromkeys(range(100_000), large))
    refused(tmp_path / "a.pth", "it holds no tensors")
    saved(tmp_path / "b.pth", [[large] * 10_000] * 10_000 + [{"x" * 100_000: large}] * 10_000)
    refused(tmp_path / "b.pth", "it holds no tensors")
