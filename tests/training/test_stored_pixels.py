"""Batches from stored pixels are identical to batches from images."""

from __future__ import annotations

import os

import pytest
from drawn import draw
from PIL import Image
from pixel_batches import (
    IMGSZ,
    LABELED,
    NOT_STORED,
    add_odd_images,
    assert_equal,
    epoch,
    forbid_decoding,
    install,
    same,
    stored_files,
)

from trainer.core.dataset import Task


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("task", LABELED)
def test_batches_from_stored_pixels_equal_batches_from_images(base, monkeypatch, tmp_path, task, mode):
    view = draw(tmp_path / "data", task)
    add_odd_images(view.root / "images" / mode)
    bare = epoch(view.data, task, mode)
    install()
    first = epoch(view.data, task, mode)
    forbid_decoding(base, monkeypatch, except_for=NOT_STORED)
    again = epoch(view.data, task, mode)

    assert_equal(bare, first)
    assert_equal(bare, again)
    images = len(list((view.root / "images" / mode).iterdir()))
    assert len(stored_files(view)) == images - 2


def test_stored_pixels_equal_stretched_images_of_rt_detr(base, monkeypatch, tmp_path):
    from ultralytics.cfg import get_cfg
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.models.rtdetr.val import RTDETRDataset

    view = draw(tmp_path / "data", Task.DETECT)
    add_odd_images(view.root / "images/val")
    data = check_det_dataset(str(view.data))

    def images():
        dataset = RTDETRDataset(img_path=data["val"], imgsz=IMGSZ, augment=True, hyp=get_cfg(), data=data)
        return [dataset.load_image(i) for i in [*range(len(dataset)), *range(len(dataset))]]

    bare = images()
    install()
    first = images()
    forbid_decoding(base, monkeypatch, except_for=NOT_STORED)

    assert same(bare, first)
    assert same(bare, images())


def test_pixels_of_other_image_size_are_not_used(base, tmp_path):
    view = draw(tmp_path / "data", Task.DETECT)
    larger, smaller = (epoch(view.data, Task.DETECT, "val", imgsz=size) for size in (48, 32))
    install()
    for _ in range(2):
        assert_equal(larger, epoch(view.data, Task.DETECT, "val", imgsz=48))
        assert_equal(smaller, epoch(view.data, Task.DETECT, "val", imgsz=32))


def test_changed_image_is_decoded_again(base, tmp_path):
    view = draw(tmp_path / "data", Task.DETECT)
    install()
    before = epoch(view.data, Task.DETECT, "val")
    for image in (view.root / "images/val").iterdir():
        Image.new("RGB", (64, 64), (9, 9, 9)).save(image)
        os.utime(image, (2**32, 2**32))
    after = epoch(view.data, Task.DETECT, "val")

    assert not any((one["img"] == other["img"]).all() for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("damage", [lambda data: data[:50], lambda data: b"x" * len(data), lambda data: data[:-2000]])
def test_damaged_pixels_are_replaced(base, tmp_path, damage):
    view = draw(tmp_path / "data", Task.DETECT)
    bare = epoch(view.data, Task.DETECT, "val")
    install()
    epoch(view.data, Task.DETECT, "val")
    for file in stored_files(view):
        file.write_bytes(damage(file.read_bytes()))

    assert [batch["img"].tolist() for batch in epoch(view.data, Task.DETECT, "val")] == [
        b["img"].tolist() for b in bare
    ]
    assert_equal(bare, epoch(view.data, Task.DETECT, "val"))


def test_stored_pixels_stay_within_size_limit(base, tmp_path):
    view = draw(tmp_path / "data", Task.DETECT)
    bare = epoch(view.data, Task.DETECT)
    install(most_bytes=5 * IMGSZ * IMGSZ * 3)

    assert_equal(bare, epoch(view.data, Task.DETECT))
    assert_equal(bare, epoch(view.data, Task.DETECT))
    assert len(stored_files(view)) == 5


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_no_pixels_are_stored_if_ultralytics_caches_images(base, tmp_path, cache):
    view = draw(tmp_path / "data", Task.DETECT)
    install()
    epoch(view.data, Task.DETECT, cache=cache, deterministic=False)

    assert not (view.root / "pixels").exists()


def test_unwritable_pixels_folder_does_not_change_batches(base, tmp_path):
    view = draw(tmp_path / "data", Task.DETECT)
    bare = epoch(view.data, Task.DETECT)
    (view.root / "pixels").write_text("not a folder")
    install()

    assert_equal(bare, epoch(view.data, Task.DETECT))
    assert_equal(bare, epoch(view.data, Task.DETECT))


def test_additional_processes_store_pixels_before_first_epoch(base, tmp_path):
    import multiprocessing

    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from trainer.training.speedups.pixels import work_ahead

    view = draw(tmp_path / "data", Task.DETECT)
    add_odd_images(view.root / "images/train")
    bare = epoch(view.data, Task.DETECT)
    install()
    data = check_det_dataset(str(view.data))
    cfg = get_cfg(overrides={"imgsz": IMGSZ, "data": str(view.data)})
    datasets = [
        build_yolo_dataset(cfg, data[mode], 4, data, mode=mode, rect=mode == "val", stride=32)
        for mode in ("val", "train")
    ]
    work_ahead(datasets, processes=2)
    for process in multiprocessing.active_children():
        process.join(60)

    assert len(stored_files(view)) == 8 + 16 + 4  # two of the six odd images are not stored
    assert [dataset.augment for dataset in datasets] == [False, True]
    assert_equal(bare, epoch(view.data, Task.DETECT))


def test_small_images_start_no_additional_process(base, tmp_path):
    import multiprocessing

    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from trainer.training.speedups.pixels import work_ahead

    view = draw(tmp_path / "data", Task.DETECT)
    install()
    data = check_det_dataset(str(view.data))
    cfg = get_cfg(overrides={"imgsz": 64, "data": str(view.data)})
    work_ahead([build_yolo_dataset(cfg, data["train"], 4, data, mode="train", stride=32)], processes=1)

    assert multiprocessing.active_children() == []
    assert stored_files(view) == []
