"""Layers, working copy and memory of the native backend, as far as a CPU has them."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import backend_for, random_batch, random_images, tiny_config, with_random_head

from vit_ipu.backends.build import require_runnable_on, resolve_device
from vit_ipu.backends.native import host_memory, micro_batches, processor
from vit_ipu.backends.native.layers import ClassTokenBlock, MatrixPatchEmbed, layers_for
from vit_ipu.backends.native.micro_batches import first_size, largest_tensor_bytes, measured_size
from vit_ipu.backends.native.working_copy import WorkingCopy
from vit_ipu.config import ModelConfig
from vit_ipu.model import ExplicitAttention, FusedAttention, Layers, PatchEmbed, ViT
from vit_ipu.model_cost import forward_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "patch"), [(28, 7), (32, 16), (224, 16)])
def test_the_patch_embedding_by_a_matrix_product_is_that_by_a_convolution(size, patch):
    config = ModelConfig(variant="vit_test", image_size=size, patch_size=patch, num_classes=3)
    results = []
    for made in (PatchEmbed, MatrixPatchEmbed):
        torch.manual_seed(0)
        layer = made(config).double()
        images = torch.randn(2, 3, size, size, dtype=torch.float64).requires_grad_()
        outputs = layer(images)
        (outputs * torch.randn(outputs.shape, dtype=torch.float64)).sum().backward()
        results.append((outputs, images.grad, layer.proj.weight.grad, layer.proj.bias.grad))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention", [ExplicitAttention, FusedAttention])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_last_block_for_the_class_token_only_gives_the_same_logits_and_gradients(attention, depth):
    config = ModelConfig(variant="vit_test", depth=depth, image_size=28, num_classes=3)
    torch.manual_seed(0)
    plain = ViT(config, layers=Layers(attention=attention)).double()
    short = ViT(config, layers=Layers(attention=attention, last_block=ClassTokenBlock)).double()
    assert type(short.blocks[-1]) is ClassTokenBlock
    short.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 28, 28, dtype=torch.float64)
    gradient = torch.randn(4, 3, dtype=torch.float64)
    for model in (plain, short):
        model(images).backward(gradient)
    torch.testing.assert_close(short(images), plain(images), rtol=1e-12, atol=1e-12)
    for (name, wanted), found in zip(plain.named_parameters(), short.parameters()):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_operations_are_those_that_the_last_block_needs():
    config = ModelConfig(variant="vit_test", image_size=28, num_classes=10)
    model = ViT(config, layers=Layers(MatrixPatchEmbed, ExplicitAttention, last_block=ClassTokenBlock))
    flop_counter = pytest.importorskip("torch.utils.flop_counter", reason="torch 2.1 or later")
    with flop_counter.FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 28, 28))
    assert counter.get_total_flops() == 2 * forward_flops(config, needed_only=True)


def test_a_cpu_has_no_kernels_of_a_gpu():
    bfloat16 = tiny_config(precision={"compute": "bfloat16"})
    assert layers_for(bfloat16, CPU) == Layers(MatrixPatchEmbed, FusedAttention, last_block=ClassTokenBlock)
    explicit = tiny_config(model={"attention": "explicit"})
    assert layers_for(explicit, CPU).attention is ExplicitAttention


def test_gradients_of_bfloat16_passes_are_summed_in_float32():
    copy = WorkingCopy(torch.nn.Linear(2, 1))
    masters = copy._masters
    ones = [torch.ones_like(parameter) for parameter in copy.model.parameters()]
    copy.add_gradients(ones)
    for _ in range(256):
        copy.add_gradients([2**-10 * gradient for gradient in ones])  # too small to change a 1 of bfloat16
    assert [parameter.dtype for parameter in copy.model.parameters()] == [torch.bfloat16] * 2
    assert all((master.grad == 1.25).all() for master in masters)


def test_gradients_of_bfloat16_passes_lie_where_several_processes_average_them():
    copy = WorkingCopy(torch.nn.Linear(2, 1))
    memory = [torch.full_like(master, 7.0) for master in copy.trained]
    copy.keep_gradients_in(memory)
    copy.add_gradients([torch.ones_like(parameter) for parameter in copy.model.parameters()])
    assert all((gradient == 1).all() for gradient in memory)
    assert all(master.grad is kept for master, kept in zip(copy.trained, memory))


@pytest.mark.parametrize("size", [4, 32])
def test_bfloat16_learns_what_float32_learns(size):
    def moved(compute):
        config = tiny_config(precision={"compute": compute}, pipeline={"native_micro_batch_size": size})
        backend = backend_for(config, "cpu")
        start = with_random_head(backend.state_dict()["model"])
        backend.load_state_dict({"model": start})
        for seed in range(3):
            backend.train_step(random_batch(config, seed), 0.05)
        weights = backend.state_dict()["model"]
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        return torch.cat([(weights[name] - start[name]).flatten() for name in start])

    exact = moved("float32")
    assert 0 < float((moved("bfloat16") - exact).norm() / exact.norm()) < 0.03


def test_small_updates_reach_the_masters_and_then_the_copy():
    config = tiny_config(precision={"compute": "bfloat16"}, optim={"momentum": 0.0})
    backend = backend_for(config, "cpu")
    start = with_random_head(backend.state_dict()["model"])
    backend.load_state_dict({"model": start})
    first = backend.predict(random_images(4))
    for _ in range(10):
        backend.train_step(random_batch(config), 1e-5)
    head = backend.state_dict()["model"]["head.weight"]
    assert 0 < (head - start["head.weight"]).abs().max() < start["head.weight"].abs().max() / 512  # bfloat16: 1 / 256
    for master, rounded in zip(backend._model.parameters(), backend._copy.model.parameters()):
        assert torch.equal(master.to(torch.bfloat16), rounded)
    backend.load_state_dict({"model": start})
    assert torch.equal(backend.predict(random_images(4)), first)


def test_predictions_between_updates_have_no_dropout():
    config = tiny_config(model={"dropout": 0.5})
    backend = backend_for(config, "cpu")
    backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
    backend.train_step(random_batch(config), 0.0)
    images = random_images(8)
    assert torch.equal(backend.predict(images), backend.predict(images))


@pytest.mark.parametrize(
    ("cpuinfo", "lacks"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx2\n", True),
        ("Features\t: fp asimd bf16\n", False),
        ("Features\t: fp asimd\n", True),
        ("nothing of the kind\n", False),
        (None, False),
    ],
)
def test_a_processor_without_bfloat16_is_noted_if_the_config_asks_for_it(tmp_path, monkeypatch, cpuinfo, lacks):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor.lacks_bfloat16() is lacks
    for compute in ("bfloat16", "float32", "auto"):
        notes = require_runnable_on(tiny_config(precision={"compute": compute}), resolve_device("cpu"))
        found = [note for note in notes if note.startswith("precision.compute bfloat16: this processor has no instr")]
        assert len(found) == (lacks and compute == "bfloat16")


# ------------------------------------------------------------------------------------------ memory


def test_passes_on_a_cpu_have_tensors_that_the_process_keeps():
    pipeline = {"global_batch_size": 4096, "micro_batch_size": 1, "layers_per_ipu": [12]}
    config = tiny_config(model={"variant": "vit_tiny_patch16", "image_size": 224}, pipeline=pipeline)
    assert largest_tensor_bytes(config.model) == 4 * 197 * 4 * 192
    assert first_size(config, CPU) * largest_tensor_bytes(config.model) <= host_memory.LARGEST_KEPT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_kept_by_the_process():
    import resource

    host_memory.keep_freed_memory()

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(6_000_000)  # 23 MiB, 5,860 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < 100


def measure(monkeypatch, peaks, free, sizes=(8, 16, 32, 64, 128)):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    tried = []

    def peak(run, size, device):
        tried.append(size)
        if size not in peaks:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return peaks[size]

    monkeypatch.setattr(micro_batches, "_peak_bytes", peak)
    return measured_size(list(sizes), lambda size: None, 10, torch.device("cuda")), tried


def test_the_size_is_the_largest_whose_memory_grows_into_what_is_free(monkeypatch):
    peaks = {16: 1000 + 16 * 10, 32: 1000 + 32 * 10}
    needed = (1000 + 64 * 10 + 12 * 10) / micro_batches.CUDA_SHARE
    assert measure(monkeypatch, peaks, int(needed) + 1) == (64, [16, 32])
    assert measure(monkeypatch, peaks, int(needed) - 1) == (32, [16, 32])
    assert measure(monkeypatch, peaks, 10**9)[0] == 128
    assert measure(monkeypatch, peaks, 1)[0] == 8


def test_a_measurement_that_runs_out_of_memory_gives_the_size_that_ran(monkeypatch):
    assert measure(monkeypatch, {16: 100}, 10**9) == (16, [16, 32])
    assert measure(monkeypatch, {}, 10**9) == (16, [16])
    assert measure(monkeypatch, {}, 10**9, sizes=[4]) == (4, [])
