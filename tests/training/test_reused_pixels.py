"""A run compares some stored pixels of an earlier run with the images, and then uses all stored pixels."""

from __future__ import annotations

import pytest
from drawn import draw
from pixel_batches import IMGSZ, LABELED, NOT_STORED, add_odd_images, epoch, install, same, stored_files

from tests.dataset_painter import OnDisk
from trainer.core.dataset import DatasetOrder, Task
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots

SAMPLES = 3  # linked files that are compared with their images


def prepare_run(datasets, source, run_id):
    """Return the dataset of a run, with the pixels that earlier runs stored."""
    order = DatasetOrder(sources=(str(source.data),), task=source.task, imgsz=IMGSZ)
    return datasets.prepare(order, source.root.parent / run_id, StopSignal(), lambda _: None)


@pytest.fixture
def datasets(tmp_path):
    """The object that prepares the datasets of all runs of a worker."""
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 30, reserve=0)
    return FetchedDatasets(OnDisk(), ReferenceRules(Roots(tmp_path), "datasets"), pixels=PixelCache(cache), decode=here)


@pytest.fixture(autouse=True)
def few_samples(base, monkeypatch):
    """Decode the minimum number of samples."""
    from trainer.training.speedups import pixels

    monkeypatch.setattr(pixels, "SAMPLE_SECONDS", 0)


@pytest.mark.parametrize("task", LABELED)
def test_second_run_decodes_samples_only(base, monkeypatch, tmp_path, datasets, task):
    source = draw(tmp_path / "data", task)
    add_odd_images(source.root / "images/train")
    install()
    first = prepare_run(datasets, source, "first")
    bare = epoch(first.data, task)
    datasets.discard(first.root.parent)
    second = prepare_run(datasets, source, "second")
    decoded = []
    real = base.imread
    monkeypatch.setattr(base, "imread", lambda name, **more: decoded.append(name) or real(name, **more))

    again = epoch(second.data, task)

    assert len({name for name in decoded if not str(name).endswith(NOT_STORED)}) == SAMPLES
    for one, other in zip(bare, again, strict=True):
        for key in one.keys() - {"im_file"}:
            assert same(one[key], other[key]), key


def test_no_pixels_of_earlier_training_are_used_if_some_are_wrong(base, tmp_path, datasets, capsys):
    source = draw(tmp_path / "data", Task.DETECT)
    install()
    first = prepare_run(datasets, source, "first")
    bare = epoch(first.data, Task.DETECT)
    for file in stored_files(first):
        data = bytearray(file.read_bytes())
        data[200] ^= 1
        file.write_bytes(data)
    datasets.discard(first.root.parent)
    second = prepare_run(datasets, source, "second")
    assert len(list(second.kept_pixels.rglob("*.npy"))) == 16

    again = epoch(second.data, Task.DETECT)

    assert "decoding all images" in capsys.readouterr().out
    for one, other in zip(bare, again, strict=True):
        assert same(one["img"], other["img"])
    # the pixels that the second run stored equal the images
    datasets.discard(second.root.parent)
    third = prepare_run(datasets, source, "third")
    epoch(third.data, Task.DETECT)
    assert "decoding all images" not in capsys.readouterr().out
