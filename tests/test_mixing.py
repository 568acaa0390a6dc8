"""Mixup and cutmix: the draws, the arithmetic on the device, and the same weights on every backend.

The reference mixes by hand, one micro-batch after the other, with soft targets. If torchvision has MixUp and CutMix,
they are a second reference.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import backend_for, random_batch, random_images, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from mixing_parity import CUTMIX, KINDS, MIXUP, SIZE, check_parity, mixed_by_hand, mixing_config
from parity import ITERATIONS

from vit_ipu import losses, mixing
from vit_ipu.backends.build import resolve_device
from vit_ipu.backends.contract import HostBatch
from vit_ipu.benchmark import benchmark
from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.data.loading.loader import EvaluationLoader, TrainingLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.losses import classification_loss
from vit_ipu.mixing import Mixer, cutmix_boxes, draws_of_update, mixing_of_step
from vit_ipu.pipeline import BatchPlan


def positions_of(config, index=0, count=1):
    return BatchPlan.of(config).share(index, count)


# ------------------------------------------------------------------------------------ the arithmetic


def example(data, count=12, side=14, num_classes=5):
    """Returns images, labels and the mixing tensor of three micro-batches, in float64."""
    config = tiny_config(
        data=data, model={"image_size": side}, pipeline={"global_batch_size": count, "layers_per_ipu": [4]}
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, side, side, dtype=torch.float64, generator=generator)
    labels = torch.randint(num_classes, (count,), generator=generator)
    return images, labels, torch.from_numpy(draws_of_update(config, 3)).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_images_and_losses_equal_soft_targets_mixed_by_hand(kind, smoothing):
    images, labels, rows = example(KINDS[kind])
    parts = [mixed_by_hand(*part, 5) for part in zip(images.split(4), labels.split(4), rows)]
    expected, targets = (torch.cat(tensors) for tensors in zip(*parts))
    torch.testing.assert_close(Mixer(14)(images, rows), expected, rtol=1e-14, atol=1e-14)
    logits = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for loss in (
        lambda x: classification_loss(x, labels, smoothing, rows),
        lambda x: F.cross_entropy(x, targets, label_smoothing=smoothing),
    ):
        x = logits.clone().requires_grad_()
        value = loss(x)
        value.backward()
        results.append((value.detach(), x.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(torchvision.__version__.startswith("0.15"), reason="torchvision has MixUp and CutMix since 0.16")
@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_one_micro_batch_is_mixed_as_by_torchvision(name):
    from torchvision.transforms import v2

    images, labels = torch.rand(5, 3, 28, 28), torch.arange(5)
    for seed in range(10):
        torch.manual_seed(seed)
        expected, targets = getattr(v2, name)(alpha=1.0, num_classes=5)(images, labels)
        own = targets[0, 0].item()
        row = [own, own, 0, 0, 28, 28]
        if name == "CutMix":
            changed = (expected != images).any(1).any(0).nonzero()
            top, left, bottom, right = [*changed.min(0).values.tolist(), *(changed.max(0).values + 1).tolist()]
            row = [own, 0, left, top, right, bottom]
            assert own == pytest.approx(1 - (bottom - top) * (right - left) / 28**2, abs=1e-6)
        rows = torch.tensor([row])
        torch.testing.assert_close(Mixer(28)(images, rows), expected)
        logits = torch.randn(5, 5)
        torch.testing.assert_close(
            classification_loss(logits, labels, 0.1, rows), F.cross_entropy(logits, targets, label_smoothing=0.1)
        )


def test_cutmix_copies_pixels_unchanged_in_half_precision():
    images = random_images(4).half() / 255
    mixed = Mixer(28).half()(images, torch.tensor([[0.75, 0.0, 0.0, 14.0, 14.0, 28.0]]))
    assert mixed.dtype == torch.float16
    expected = images.clone()
    expected[:, :, 14:28, 0:14] = images.roll(1, 0)[:, :, 14:28, 0:14]
    assert torch.equal(mixed, expected)


def test_mixing_half_precision_logits_gives_a_float32_loss():
    _, labels, rows = example(MIXUP)
    logits = torch.randn(12, 5)
    loss = classification_loss(logits.half(), labels, 0.1, rows.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(classification_loss(logits, labels, 0.1, rows.float()).item(), rel=1e-2)


# --------------------------------------------------------------------------------------- the draws


def draws(count=4000, **data):
    pipeline = {"global_batch_size": 4 * count, "layers_per_ipu": [4]}
    return draws_of_update(tiny_config(data=data, pipeline=pipeline), 0)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_mixups_shares_have_the_moments_of_their_beta_distribution(alpha):
    rows = draws(mixup_alpha=alpha)
    own = rows[:, 0]
    assert abs(own.mean() - 0.5) < 0.03
    assert own.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    np.testing.assert_allclose(rows[:, 1], own, atol=1e-6)  # the share of the label equals that of the pixels
    assert (rows[:, 2:] == [0, 0, 28, 28]).all()


def test_cutmix_label_shares_follow_the_true_area_of_the_boxes():
    rows = draws(cutmix_alpha=1.0).astype(np.float64)
    left, top, right, bottom = rows[:, 2:].T
    assert (rows[:, 1] == 0).all()
    np.testing.assert_allclose(rows[:, 0], 1 - (right - left) * (bottom - top) / 28**2, atol=1e-6)


def test_mixup_and_cutmix_each_draw_with_their_own_alpha():
    rows = draws(mixup_alpha=1e4, cutmix_alpha=1e-3)
    assert np.abs(rows[rows[:, 1] > 0, 0] - 0.5).max() < 0.05
    rows = draws(mixup_alpha=1e-3, cutmix_alpha=1e4)
    sides = rows[(rows[:, 2] > 0) & (rows[:, 4] < 28)]
    assert set(sides[:, 4] - sides[:, 2]) <= {18, 20}  # about 28 / sqrt(2), and even


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(0, 100))
def test_boxes_lie_in_the_image_and_have_the_area_drawn_unless_clipped(side, seed):
    rng = np.random.default_rng(seed)
    own = rng.random(50)
    left, top, right, bottom = cutmix_boxes(own, side, rng).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= side).all()
    assert (bottom <= side).all()
    free = (left > 0) & (top > 0) & (right < side) & (bottom < side)
    for size in (right - left, bottom - top):
        wanted = side * np.sqrt(1 - own)
        assert (size <= wanted).all()
        assert (size[free] > wanted[free] - 2).all()  # whole pixels, and an even number of them


def test_boxes_cover_every_part_of_the_image():
    boxes = cutmix_boxes(np.full(4000, 0.9), 28, np.random.default_rng(0))
    covered = np.zeros((28, 28), int)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] += 1
    assert covered.min() > 0
    assert abs(covered - covered.T).max() < 0.2 * covered.max()


def test_cutmix_share_and_mixing_probability_are_respected():
    rows = draws(mixup_alpha=0.4, cutmix_alpha=1.0, cutmix_share=0.3, mixing_probability=0.8)
    unmixed = (rows[:, 1] == 1) & (rows[:, 0] == 1)
    assert abs(unmixed.mean() - 0.2) < 0.03
    assert abs((rows[~unmixed, 1] == 0).mean() - 0.3) < 0.03


def test_unmixed_rows_change_neither_images_nor_labels():
    images, labels, rows = example({**MIXUP, **CUTMIX, "mixing_probability": 1e-9})
    assert torch.equal(Mixer(14)(images, rows), images)
    logits = torch.randn(12, 5, dtype=torch.float64)
    torch.testing.assert_close(classification_loss(logits, labels, 0.0, rows), F.cross_entropy(logits, labels))


def test_one_draw_per_update_is_shared_by_its_micro_batches():
    config = mixing_config(KINDS["graphcore"])
    rows = mixing_of_step(config, 5, positions_of(config)).reshape(ITERATIONS, -1, 6)
    assert (rows == rows[:, :1]).all()
    assert rows[0, 0, 0] != rows[1, 0, 0]


# ------------------------------------------------------------------------ what the draws depend on


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_the_same_however_replicas_and_instances_share_them(kind):
    config = mixing_config(KINDS[kind])
    whole = mixing_of_step(config, 3, positions_of(config))
    assert whole.shape == (2 * 16, 6)
    assert whole.dtype == torch.float32
    alone = mixing_config(KINDS[kind], pipeline={"replication_factor": 1})
    assert torch.equal(mixing_of_step(alone, 3, positions_of(alone)), whole)
    shares = [mixing_of_step(config, 3, positions_of(config, index, 2)) for index in (0, 1)]
    assert torch.equal(torch.stack(shares, dim=1).reshape(-1, 6), whole)  # [D][G] of each replica
    single = mixing_config(KINDS[kind], pipeline={"device_iterations": 1})
    steps = [mixing_of_step(single, 2 * 3 + i, positions_of(single)) for i in (0, 1)]
    assert torch.equal(torch.cat(steps), whole)


def test_updates_and_seeds_draw_differently():
    config = mixing_config(KINDS["both"])
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 7})})
    first, second, others = draws_of_update(config, 0), draws_of_update(config, 1), draws_of_update(other, 0)
    assert len(np.unique(np.concatenate([first, second, others])[:, 0])) > 40


def test_without_mixing_nothing_is_drawn():
    for data in ({}, {**MIXUP, "mixing_probability": 0.0}):
        config = mixing_config(data)
        assert mixing_of_step(config, 0, positions_of(config)) is None


def test_the_loader_attaches_the_draws_of_each_host_step():
    config = mixing_config({**KINDS["both"], "num_train": 100})
    source = open_source(config.data, config.model, "train")
    for index, count in ((0, 1), (1, 2)):
        positions = positions_of(config, index, count)
        steps = list(TrainingLoader(source, config, positions, start_step=2, total_steps=4))
        assert len(steps) == 2
        for number, step in enumerate(steps):
            assert torch.equal(step.mixing, mixing_of_step(config, 2 + number, positions))
            assert [len(tensor) for tensor in step.inputs] == [len(positions)] * 2 + [len(positions) // SIZE]
    assert next(iter(EvaluationLoader(source, config))).mixing is None


def test_parts_of_a_host_step_keep_their_rows():
    config = mixing_config(MIXUP)
    batch = random_batch(config)
    parts = list(batch.split(16))
    assert [(len(part), len(part.mixing)) for part in parts] == [(16, 4)] * 8
    assert torch.equal(torch.cat([part.mixing for part in parts]), batch.mixing)
    unmixed = dataclasses.replace(batch, mixing=None)
    assert [part.mixing for part in unmixed.split(64)] == [None] * 2


PUBLISHED = {
    "graphcore_*_pretrain_*": ("imagenet", 0.5, "update", 0.0),
    "mmcls_*_pretrain_*": ("imagenet", 0.2, "micro_batch", 0.5),
    "mmcls_*_finetune_*": (None, 0.0, "micro_batch", 0.5),
    "graphcore_*_imagenet_*": (None, 0.0, "micro_batch", 0.0),
    "graphcore_*_cifar10_*": (None, 0.0, "micro_batch", 0.0),
}


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_the_shipped_recipes_augment_and_mix_as_published(pattern):
    names = fnmatch.filter(shipped_configs(), pattern)
    assert names
    for name in names:
        data = load_config(shipped_configs()[name]).data
        assert (data.auto_augment, data.mixup_alpha, data.mixing_draw, data.horizontal_flip) == PUBLISHED[pattern]
        assert (data.cutmix_alpha, data.rand_augment, data.random_erasing, data.mixing_probability) == (0, None, 0, 1)


# -------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("kind", KINDS)
def test_mixing_learns_the_same_on_every_backend(kind):
    assert backend_for(mixing_config(KINDS[kind]), "cpu").micro_batch_size == 64  # all micro-batches are merged
    check_parity(KINDS[kind])


def test_mixing_without_smoothing_learns_the_same_on_every_backend():
    check_parity(KINDS["both"], label_smoothing=0.0)


def rolled_over_all_groups(monkeypatch):
    monkeypatch.setattr(mixing, "_partners", lambda groups: groups.flatten(0, 1).roll(1, 0).reshape(groups.shape))


def swapped_shares(monkeypatch):
    original = losses.own_label_shares
    monkeypatch.setattr(losses, "own_label_shares", lambda labels, rows: 1 - original(labels, rows))


def rows_of_other_micro_batches(monkeypatch):
    original = HostBatch.inputs.fget
    monkeypatch.setattr(
        HostBatch,
        "inputs",
        property(lambda batch: original(SimpleNamespace(**{**vars(batch), "mixing": batch.mixing.flip(0)}))),
    )


def own_pixels_inside_the_box(monkeypatch):
    original = Mixer.own_pixels
    monkeypatch.setattr(Mixer, "own_pixels", lambda self, rows: 1 - original(self, rows))


@pytest.mark.parametrize(
    ("mutate", "device"),
    [
        (rolled_over_all_groups, "cpu"),
        (swapped_shares, "cpu"),
        (swapped_shares, "ipu-sim"),
        (rows_of_other_micro_batches, "ipu-sim"),
        (own_pixels_inside_the_box, "ipu-sim"),
    ],
)
def test_a_mutation_makes_the_parity_check_fail(monkeypatch, mutate, device):
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match=device):
        check_parity(KINDS["both"], devices=(device,))


def test_mixing_in_half_precision_is_near_float32():
    """Compares float16 on simulated IPUs, with the mixing rows in float32, with float32 on the CPU."""
    results = []
    for compute, device in (("float16", "ipu-sim"), ("float32", "cpu")):
        config = mixing_config(KINDS["both"], precision={"compute": compute})
        backend = backend_for(config, device)
        results.append([backend.train_step(random_batch(config, seed), 0.05).loss for seed in range(3)])
    assert results[0] == pytest.approx(results[1], rel=5e-3)


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
def test_a_benchmark_mixes_too(monkeypatch, device):
    seen = []
    original = Mixer.forward
    monkeypatch.setattr(Mixer, "forward", lambda self, images, rows: seen.append(1) or original(self, images, rows))
    assert benchmark(mixing_config(MIXUP), resolve_device(device), steps=1, burn_in=0).images_per_second > 0
    assert seen
