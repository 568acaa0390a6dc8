"""The written-out losses equal torch's and timm's in values and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import backend_for, random_batch, relative_errors, tiny_config, with_random_head, worst
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.backends.contract import HostBatch
from vit_ipu.class_balance import class_weights
from vit_ipu.losses import TrainingLoss, binary_loss, classification_loss, loss_of_guess
from vit_ipu.mixing import partner_labels

GENERATED = {"source": "generated"}
WEIGHTS = (0.25, 4.0, 1.0, 0.5, 2.0)
MIXING = torch.tensor([[0.7, 0.7, 0.0, 0.0, 8.0, 8.0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_equals_torchs_cross_entropy(smoothing):
    logits, labels = logits_and_labels()
    assert_same_loss(
        logits,
        lambda x: classification_loss(x, labels, smoothing),
        lambda x: F.cross_entropy(x, labels, label_smoothing=smoothing),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_half_precision_logits_give_a_float32_loss(smoothing):
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    loss = classification_loss(logits.half(), labels, smoothing)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=smoothing).item(), rel=1e-2)


def logits_and_labels(count=8, num_classes=5):
    torch.manual_seed(0)
    return torch.randn(count, num_classes, dtype=torch.float64), torch.randint(num_classes, (count,))


def assert_same_loss(logits, ours, theirs, bound=1e-12):
    found = []
    for loss in (ours, theirs):
        x = logits.clone().requires_grad_()
        value = loss(x)
        value.backward()
        found.append((value.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1], rtol=bound, atol=bound)


def mixed_targets(labels, num_classes, smoothing, share):
    """Returns the targets that timm's Mixup makes, with the sample before as partner."""
    own, partners = (F.one_hot(x, num_classes).double() for x in (labels, partner_labels(labels, MIXING)))
    return (share * own + (1 - share) * partners) * (1 - smoothing) + smoothing / num_classes


# ------------------------------------------------------------------------------------- class weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_torchs_with_the_sum_over_a_batch_divided_by_its_size(smoothing):
    logits, labels = logits_and_labels()
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    assert_same_loss(
        logits,
        lambda x: classification_loss(x, labels, smoothing, class_weights=weights),
        lambda x: F.cross_entropy(x, labels, weight=weights, label_smoothing=smoothing, reduction="none").mean(),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_of_mixed_targets_are_torchs_for_probabilities(smoothing):
    logits, labels = logits_and_labels()
    weights, share = torch.tensor(WEIGHTS, dtype=torch.float64), float(MIXING[0, 0])
    targets = mixed_targets(labels, 5, smoothing, share)
    assert_same_loss(
        logits,
        lambda x: classification_loss(x, labels, smoothing, MIXING, class_weights=weights),
        lambda x: F.cross_entropy(x, targets, weight=weights),
    )


def test_over_all_images_the_reduction_is_torchs_own():
    """Its divisor is the sum of the weights in the batch, which is n for weights of mean 1 over n images."""
    logits, labels = logits_and_labels(60)
    config = tiny_config(model={"num_classes": 5}, data=GENERATED, optim={"class_weights": [3.0, 1.0, 7.0, 2.0, 5.0]})
    weights = torch.tensor(class_weights(config, labels.numpy(), "abcde"), dtype=torch.float64)
    assert_same_loss(
        logits,
        lambda x: classification_loss(x, labels, class_weights=weights),
        lambda x: F.cross_entropy(x, labels, weight=torch.tensor([3.0, 1.0, 7.0, 2.0, 5.0], dtype=torch.float64)),
    )


def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_micro_batches():
    logits, labels = logits_and_labels(16)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    parts = [classification_loss(x, y, class_weights=weights) for x, y in zip(logits.split(4), labels.split(4))]
    torch.testing.assert_close(torch.stack(parts).mean(), classification_loss(logits, labels, class_weights=weights))
    theirs = [F.cross_entropy(x, y, weight=weights) for x, y in zip(logits.split(4), labels.split(4))]
    difference = torch.stack(theirs).mean() - F.cross_entropy(logits, labels, weight=weights)
    assert abs(difference) > 1e-2  # so torch's reduction would not do


def test_a_loss_without_the_weights_that_the_config_asks_for_is_nan():
    logits, labels = logits_and_labels(num_classes=10)
    loss = TrainingLoss(tiny_config(optim={"class_weights": "balanced"}))
    assert loss(logits, labels).isnan()
    assert TrainingLoss(tiny_config(optim={"class_weights": "balanced"}), [1.0] * 10)(logits, labels).isfinite()


# -------------------------------------------------------------------------------- binary cross-entropy


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_binary_loss_is_timms(smoothing, threshold):
    logits, labels = logits_and_labels()
    assert_same_loss(
        logits,
        lambda x: binary_loss(x, labels, smoothing, threshold=threshold),
        timms_binary_loss(labels, smoothing, threshold),
    )
    assert_same_loss(
        logits.float(),
        lambda x: binary_loss(x, labels, smoothing, threshold=threshold),
        timms_binary_loss(labels, smoothing, threshold),
        bound=1e-6,
    )


def timms_binary_loss(targets, smoothing=0.0, threshold=None):
    loss = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)
    return lambda x: loss(x, targets.to(x.dtype) if targets.is_floating_point() else targets)


@pytest.mark.parametrize("threshold", [None, 0.2, 0.4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_binary_loss_of_mixed_samples_is_timms_for_the_targets_of_its_mixup(smoothing, threshold):
    logits, _ = logits_and_labels(2)
    labels = torch.tensor([3, 1])  # the partner of each is the other, as in timm's mixup of two samples
    targets = mixup_target(labels, 5, float(MIXING[0, 0]), smoothing).double()
    torch.testing.assert_close(targets, mixed_targets(labels, 5, smoothing, 0.7), rtol=1e-6, atol=1e-6)
    assert_same_loss(
        logits,
        lambda x: binary_loss(x, labels, smoothing, MIXING, threshold=threshold),
        timms_binary_loss(targets, threshold=threshold),
        bound=1e-6,
    )


@pytest.mark.parametrize("scale", [0.0, 1000.0])
def test_gradients_of_the_binary_loss_are_right_at_zero_and_far_from_it(scale):
    logits, labels = logits_and_labels()
    x = (scale * logits).float().requires_grad_()
    binary_loss(x, labels).backward()
    expected = (x.detach().double().sigmoid() - F.one_hot(labels, 5)) / x.numel()
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_binary_loss_of_half_precision_logits_is_in_float32():
    logits, labels = logits_and_labels()
    loss = binary_loss(logits.half(), labels, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(binary_loss(logits, labels, 0.1).item(), rel=1e-3)


@pytest.mark.parametrize(
    ("optim", "weights", "expected"),
    [
        ({}, None, math.log(10)),
        ({"loss": "bce"}, None, math.log(2)),
        ({"class_weights": "balanced"}, [0.5] * 9 + [5.5], 5.5 * math.log(10)),
        ({"class_weights": "balanced"}, [1.0] * 10, math.log(10)),
    ],
)
def test_the_loss_of_a_guess_is_that_of_equal_outputs(optim, weights, expected):
    config = tiny_config(optim=optim)
    assert loss_of_guess(config, weights) == pytest.approx(expected)
    heaviest = torch.tensor([9])
    assert TrainingLoss(config, weights)(torch.zeros(1, 10), heaviest).item() == pytest.approx(expected)


@pytest.mark.parametrize("optim", [{"class_weights": "balanced"}, {"loss": "bce", "bce_target_threshold": 0.2}])
def test_the_losses_are_one_graph_for_torch_compile(optim):
    """Breaks of the graph would be reads of values by the host, which CUDA graphs cannot have."""
    config = tiny_config(data=GENERATED, optim=dict(optim, label_smoothing=0.1))
    loss = TrainingLoss(config, [0.5] * 5 + [1.5] * 5 if "class_weights" in optim else None).double()
    logits, labels = logits_and_labels(num_classes=10)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_same_loss(logits, lambda x: compiled(x, labels, MIXING), lambda x: loss(x, labels, MIXING))


# ------------------------------------------------------------------------------------- on the devices


LOSSES = {
    "class weights": {"class_weights": [*WEIGHTS, *WEIGHTS]},
    "bce": {"loss": "bce"},
    "bce with a threshold": {"loss": "bce", "bce_target_threshold": 0.2},
}


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_updates_are_those_of_one_loss_over_the_global_batch(name, mixes, device):
    """Compares three updates, whose micro-batches are in two replicas, with losses of torch and timm."""
    config = tiny_config(
        data={**GENERATED, "mixup_alpha": 0.8 if mixes else 0.0},
        pipeline={"replication_factor": 2, "layers_per_ipu": [2, 2]},
        precision={"compute": "float64"},
        optim={"label_smoothing": 0.1, **LOSSES[name]},
    )
    weights = None if "bce" in name else tuple(np.array(config.optim.class_weights) / 1.55)
    start = with_random_head(backend_for(config, "cpu").state_dict()["model"])
    batches = [random_batch(config, seed) for seed in range(3)]
    backend = build_backend(config, resolve_device(device), class_weights=weights)
    backend.load_state_dict({"model": start})
    losses = [backend.train_step(batch, 0.5).loss for batch in batches]
    expected = train_plainly(config, start, batches, weights)
    assert losses == pytest.approx(expected[0], rel=1e-6)
    assert worst(relative_errors(backend.state_dict()["model"], expected[1])) < 1e-6
    backend.close()


def train_plainly(config, start, batches, weights):
    """Trains with dense targets of the global batch, by torch's and timm's losses, in operations of torch alone."""
    from vit_ipu.mixing import Mixer
    from vit_ipu.model import ViT
    from vit_ipu.step import Normalize

    model, normalize, mixer = (
        ViT(config.model).double(),
        Normalize(config.data).double(),
        Mixer(config.model.image_size),
    )
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for batch in batches:
        images, targets = normalize(batch.images), F.one_hot(batch.labels, 10).double()
        if batch.mixing is not None:
            images = mixer(images, batch.mixing)
            share = batch.mixing[:, 0].repeat_interleave(4).double()[:, None]
            partners = targets.view(-1, 4, 10).roll(1, 1).reshape(-1, 10)
            targets = share * targets + (1 - share) * partners
        targets = 0.9 * targets + 0.1 / 10
        if config.optim.loss == "bce":
            loss = BinaryCrossEntropy(target_threshold=config.optim.bce_target_threshold)(model(images), targets)
        else:
            loss = F.cross_entropy(model(images), targets, weight=torch.tensor(weights, dtype=torch.float64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize("name", LOSSES)
def test_a_float16_pipeline_keeps_the_loss_in_float32(name):
    """Weights that float16 cannot hold would become infinite on the IPUs."""
    optim = dict(LOSSES[name], label_smoothing=0.1)
    config = tiny_config(data=GENERATED, precision={"compute": "float16"}, optim=optim)
    weights = None if "bce" in name else (1e5,) * 10
    batch = random_batch(config)
    losses = {}
    for device, compute in (("cpu", "float32"), ("ipu-sim", "float16")):
        precision = config.precision.model_copy(update={"compute": compute})
        backend = build_backend(
            config.model_copy(update={"precision": precision}), resolve_device(device), class_weights=weights
        )
        losses[device] = backend.train_step(HostBatch(batch.images, batch.labels), 1e-9).loss
        backend.close()
    assert losses["ipu-sim"] == pytest.approx(losses["cpu"], rel=2e-3)
