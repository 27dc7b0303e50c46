"""Batches of a drawn dataset, to compare batches from images with batches from stored pixels."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from trainer.core.dataset import Task

LABELED = [Task.DETECT, Task.SEGMENT, Task.POSE, Task.OBB]
IMGSZ = 32  # pixels; the drawn images are 64 pixels wide and high
NOT_STORED = ("exact.png", "small.png")  # images that are not larger than IMGSZ, so their pixels are not stored


def install(most_bytes=1 << 30):
    from trainer.training.speedups.pixels import install as install_pixels

    install_pixels(most_bytes)


def add_odd_images(folder):
    """Add images as phones, scanners and drawing programs save them."""
    images = sorted(folder.iterdir())
    first = Image.open(images[0]).resize((90, 70))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    first.save(folder / "rotated.jpg", exif=exif)
    first.convert("L").save(folder / "gray.png")
    first.convert("RGBA").save(folder / "transparent.png")
    Image.fromarray(np.arange(70 * 90, dtype=np.uint16).reshape(70, 90) * 10).save(folder / "deep.png")
    first.resize((IMGSZ, 20)).save(folder / "exact.png")
    first.resize((16, 20)).save(folder / "small.png")
    label = (folder.parents[1] / "labels" / folder.name / images[0].name).with_suffix(".txt").read_text()
    for name in ("rotated", "gray", "transparent", "deep", "exact", "small"):
        (folder.parents[1] / "labels" / folder.name / f"{name}.txt").write_text(label)


def epoch(data_yaml, task, mode="train", **arguments):
    """Return the batches of one epoch, always with the same random numbers."""
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the generator that Ultralytics uses
    torch.manual_seed(1)
    cfg = get_cfg(overrides={"task": task.value, "imgsz": IMGSZ, "data": str(data_yaml), **arguments})
    data = check_det_dataset(str(data_yaml))
    dataset = build_yolo_dataset(cfg, data[mode], 4, data, mode=mode, rect=mode == "val", stride=32)
    order = [*range(len(dataset)), *reversed(range(len(dataset)))]
    return [dataset.collate_fn([dataset[i] for i in order[n : n + 4]]) for n in range(0, len(order), 4)]


def stored_files(view):
    return [path for path in (view.root / "pixels").rglob("*") if path.is_file()]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert same(value, other[key]), key


def same(one, other):
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


def forbid_decoding(base, monkeypatch, *, except_for=()):
    real = base.imread

    def imread(name, **more):
        assert str(name).endswith(except_for), f"{name} was decoded again"
        return real(name, **more)

    monkeypatch.setattr(base, "imread", imread)
