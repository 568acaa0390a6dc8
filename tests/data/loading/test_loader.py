"""Host steps and evaluation chunks, which are the same for any number of workers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import tiny_config, write_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from loaded_steps import copies, same, training_loader
from other_process import run_python

from vit_ipu.data.loading import loader as loading
from vit_ipu.data.loading import workers as processes
from vit_ipu.data.loading.loader import EvaluationLoader, SampleGenerators, TrainingLoader
from vit_ipu.data.loading.order import TrainingStream
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import DataError
from vit_ipu.pipeline import BatchPlan


def steps_of(config, start=0, total=3, share=(0, 1)):
    return copies(training_loader(config, start, total, share))


def loader_config(**data):
    pipeline = {"global_batch_size": 32, "micro_batch_size": 4, "replication_factor": 2, "device_iterations": 2}
    return tiny_config(pipeline=pipeline, data={"crop": "random_resized", "num_train": 100, **data})


def test_host_steps_have_the_right_shapes_and_types():
    for step in steps_of(loader_config()):
        assert (step.images.shape, step.images.dtype) == ((64, 3, 28, 28), torch.uint8)
        assert (step.labels.shape, step.labels.dtype, len(step)) == ((64,), torch.int64, 64)
    assert steps_of(loader_config(transfer="float32"))[0].images.dtype == torch.float32


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(monkeypatch, workers):
    monkeypatch.setattr(processes, "JOB_SIZES", (10, 10))  # several jobs a step, and a smaller one at the end
    assert same(steps_of(loader_config(num_workers=workers)), steps_of(loader_config()))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_with_and_without_workers(tmp_path, workers):
    write_image_folder(tmp_path)
    (tmp_path / "val" / "dog" / "1.png").write_text("no image")
    config = tiny_config(
        data={"source": "imagefolder", "path": str(tmp_path), "num_workers": workers}, model={"num_classes": 2}
    )
    source = open_source(config.data, config.model, "eval")
    with pytest.raises(DataError, match=r"^cannot read the image .*val/dog/1.png: [^\n]*$"):
        list(EvaluationLoader(source, config))


def test_the_stream_can_start_in_the_middle_of_an_epoch():
    config = loader_config()  # 100 images, 64 a step: step 2 begins in epoch 1
    assert same(steps_of(config, start=2, total=5), steps_of(config, total=5)[2:])


def test_a_loader_can_be_iterated_again():
    config = loader_config()
    source = open_source(config.data, config.model, "train")
    loader = TrainingLoader(source, config, BatchPlan.of(config).share(0, 1), start_step=0, total_steps=2)
    assert same(copies(loader), copies(loader))


def test_the_seed_changes_the_order():
    config = loader_config()
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 1})})
    assert not same(steps_of(config), steps_of(other))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(0, 5))
def test_every_epoch_of_the_stream_is_a_permutation(num_images, seed):
    stream = TrainingStream(num_images, seed)
    entries = stream.at(range(3 * num_images))
    for epoch in range(3):
        part = entries[epoch * num_images : (epoch + 1) * num_images]
        assert [e for e, _ in part] == [epoch] * num_images
        assert sorted(index for _, index in part) == list(range(num_images))


def test_every_sample_has_random_numbers_of_its_own():
    def draws(generators, epoch, index):
        rng = generators.of(epoch, index)
        rng.integers(100, dtype=np.uint32)  # leaves half of a number buffered
        return rng.random(3).tolist()

    generators, again = SampleGenerators(5), SampleGenerators(5)
    places = [(epoch, index) for epoch in range(3) for index in [0, 1, 2, 2**40]]
    found = [draws(generators, *place) for place in places]
    assert [draws(again, *place) for place in reversed(places)] == found[::-1]
    assert len({tuple(row) for row in found}) == len(places)
    copy = pickle.loads(pickle.dumps(generators))  # as it is sent to processes that are not forked
    assert [draws(copy, *place) for place in places] == found
    assert draws(SampleGenerators(6), 0, 0) != found[0]
    first = [generators.of(0, index).random() for index in range(4000)]
    assert np.corrcoef(first[1:], first[:-1])[0, 1] == pytest.approx(0, abs=0.06)
    assert np.quantile(first, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)


def test_augmentation_differs_between_epochs_and_not_between_runs():
    config = loader_config(num_train=32)
    first, second = steps_of(config, total=1)[0], steps_of(config, total=1)[0]
    assert torch.equal(first.images, second.images)
    epochs = first.images.reshape(2, 32, -1), first.labels.reshape(2, 32)
    assert sorted(epochs[1][0].tolist()) == sorted(epochs[1][1].tolist())
    assert not torch.equal(epochs[0][0].float().mean(0), epochs[0][1].float().mean(0))


def test_instances_feed_the_samples_of_their_replicas():
    config = loader_config()
    whole, first, second = (steps_of(config, total=1, share=share)[0] for share in ((0, 1), (0, 2), (1, 2)))
    together = torch.stack([part.images.reshape(8, 4, 3, 28, 28) for part in (first, second)], dim=1)
    assert torch.equal(together.reshape(whole.images.shape), whole.images)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40))
def test_evaluation_sees_every_image_once(num_images, chunk):
    config = tiny_config(data={"num_eval": num_images})
    source = open_source(config.data, config.model, "eval")
    original, loading.CHUNK = loading.CHUNK, chunk
    try:
        batches = list(EvaluationLoader(source, config))
    finally:
        loading.CHUNK = original
    assert torch.cat([batch.labels for batch in batches]).tolist() == source.labels.tolist()
    images = torch.cat([batch.images for batch in batches])
    expected = np.stack([np.asarray(source.image(i)).transpose(2, 0, 1) for i in range(num_images)])
    assert torch.equal(images, torch.from_numpy(expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_loader_keeps_its_workers_while_it_is_open(monkeypatch, workers):
    started = []
    start = processes.WorkerPool._start
    monkeypatch.setattr(processes.WorkerPool, "_start", lambda pool: (started.append(pool), start(pool)))
    config = tiny_config(data={"num_eval": 300, "num_workers": workers})
    source = open_source(config.data, config.model, "eval")
    assert EvaluationLoader(source, config).has_workers is (workers == 0)
    with EvaluationLoader(source, config) as loader:
        for _ in range(3):
            assert torch.cat([batch.labels for batch in loader]).tolist() == source.labels.tolist()
            assert loader.has_workers
        assert len(started) == (1 if workers else 0)
        iterator = iter(loader)
        next(iterator)
        iterator.close()  # as an interrupted evaluation does
        assert torch.cat([batch.labels for batch in loader]).tolist() == source.labels.tolist()
        assert len(started) == (2 if workers else 0)
        for process in started[-1]._processes if workers else ():
            process.kill()
            process.join()
        assert torch.cat([batch.labels for batch in loader]).tolist() == source.labels.tolist()
        assert len(started) == (3 if workers else 0)
    assert all(pool.is_closed for pool in started)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_iterator_of_an_evaluation_loader_has_the_images_of_its_indices(workers):
    config = tiny_config(data={"num_eval": 1100, "num_workers": workers})
    source = open_source(config.data, config.model, "eval")
    expected = copies(EvaluationLoader(source, config))
    with EvaluationLoader(source, config) as loader:
        first = iter(loader)
        next(first)
        again = copies(loader)
        assert len(again) == len(expected) == 5
        for found, batch in zip(again, expected):
            assert torch.equal(found.images, batch.images)
            assert torch.equal(found.labels, batch.labels)
        if workers:
            with pytest.raises(RuntimeError, match="another series of steps"):
                next(first)
        else:
            assert torch.equal(next(first).images, expected[1].images)


def test_an_evaluation_loader_that_is_not_kept_open_ends_its_workers():
    config = tiny_config(data={"num_eval": 20, "num_workers": 2})
    loader = EvaluationLoader(open_source(config.data, config.model, "eval"), config)
    assert sum(len(batch.labels) for batch in loader) == 20
    assert not loader.has_workers


PEAK = """
import resource, sys, torch
from helpers import tiny_config
from vit_ipu.backends.contract import Instances
from vit_ipu.data.loading.loader import EvaluationLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.evaluate import evaluate_batches

class Zeros:
    instances = Instances()

    def predict(self, images):
        return torch.zeros(len(images), 10)

model = {"image_size": 224, "patch_size": 14}
config = tiny_config(model=model, data={"source": "generated", "num_eval": int(sys.argv[1])})
found = evaluate_batches(Zeros(), EvaluationLoader(open_source(config.data, config.model, "eval"), config))
print(found.num_images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_evaluation_needs_no_more_memory_for_more_images(tmp_path):
    peaks = {}
    for count in (512, 2048):
        done = run_python(PEAK, count, timeout=600)
        assert done.returncode == 0, done.stderr
        out = done.stdout.split()
        assert int(out[0]) == count
        peaks[count] = int(out[1])
    assert peaks[2048] - peaks[512] < 77, peaks  # MiB: two chunks of 256, where all images would take 220 more
