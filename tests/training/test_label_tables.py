"""Ultralytics gets the same labels from a label table as from a scan."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from child_run import order_for, run_child
from drawn import draw
from PIL import Image

from tests.dataset_painter import prepared
from trainer.core.dataset import Task
from trainer.core.events import Finished
from trainer.training.wire import FAST_LOADER

LABELED = [Task.DETECT, Task.SEGMENT, Task.POSE, Task.OBB]


@pytest.fixture(autouse=True)
def module(tmp_path_factory, monkeypatch):
    """Ultralytics' module, restored after the test."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ultralytics.data.dataset as module

        monkeypatch.setattr(module.YOLODataset, "_load_or_scan_cache", module.YOLODataset._load_or_scan_cache)
        yield module


@pytest.fixture
def scanned(module, monkeypatch):
    """The names of the images that Ultralytics scanned."""
    seen = []
    verify = module.verify_image_label

    def record_and_verify(arguments):
        seen.append(Path(arguments[0]).name)
        return verify(arguments)

    monkeypatch.setattr(module, "verify_image_label", record_and_verify)
    return seen


def labels(module, view, *, table, single_cls=False):
    """Return the labels of both splits, from the label tables of the view or from the scan of Ultralytics."""
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils import DEFAULT_CFG

    from trainer.training.speedups.labels import install

    original = module.YOLODataset._load_or_scan_cache
    if table:
        install()
    try:
        data = check_det_dataset(str(view.data))
        found = []
        for split in ("train", "val"):
            dataset = module.YOLODataset(
                img_path=data[split],
                data=data,
                task=view.task.value,
                augment=False,
                hyp=DEFAULT_CFG,
                single_cls=single_cls,
            )
            found += dataset.labels
            assert dataset.im_files == [label["im_file"] for label in dataset.labels]
            (Path(data[split]).parents[1] / "labels" / f"{split}.cache").unlink(missing_ok=True)
    finally:
        module.YOLODataset._load_or_scan_cache = original
    return found


def assert_equal(found, expected):
    assert [label["im_file"] for label in found] == [label["im_file"] for label in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert same(one[name], value), (one["im_file"], name, one[name], value)


def same(one, other):
    if isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def write_realistic_labels(root, task):
    """Replace labels with many rows (numbers of 3 to 17 digits), an empty file, commas and duplicates."""
    rng = random.Random(3)

    def row():
        points = [
            (rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)) for _ in range({Task.OBB: 4}.get(task, rng.randint(3, 9)))
        ]
        box = [*points[0], rng.uniform(0.01, 0.2), rng.uniform(0.01, 0.2)]
        numbers = {
            Task.DETECT: box,
            Task.POSE: box + [value for x, y in points[:1] * 4 for value in (x, y, rng.choice((0, 1, 2)))],
        }.get(task, [value for point in points for value in point])
        digits = rng.choice((3, 6, 9, 17))
        return " ".join([str(rng.randrange(2)), *(f"{number:.{digits}g}" for number in numbers)])

    files = sorted((root / "labels").glob("*/*.txt"))
    for file in files[::2]:
        file.write_text("\n".join(row() for _ in range(rng.randint(1, 12))) + "\n")
    files[1].write_text("")
    files[3].write_text(files[3].read_text().replace(" ", ","))
    twice = files[5].read_text().strip()
    files[5].write_text(f"{twice}\n{twice}\n")
    almost = files[7].read_text().split()
    files[7].write_text(
        f"{' '.join(almost)}\n{' '.join([*almost[:-1], almost[-1] + '0000000001'])}\n"
    )  # the two rows are equal as float32


def add_odd_images(folder):
    """Add images in several formats, some of them with an orientation in EXIF or XMP."""
    images = sorted(folder.iterdir())
    first = Image.open(images[0]).resize((90, 70))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    for name, options in {
        "rotated.jpg": {"exif": exif}, "rotated.png": {"exif": exif}, "plain.jpg": {}, "gray.jpg": {}, "rotated.webp": {"exif": exif},
        "xmp.jpg": {"xmp": b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="8"/>'}, "plain.bmp": {},
        "progressive.jpg": {"progressive": True}, "plain.tif": {}, "many.mpo": {},
    }.items():  # fmt: skip
        stem, _, suffix = name.partition(".")
        kind = {"mpo": {"format": "MPO"}}.get(suffix, {})
        (first.convert("L") if stem == "gray" else first).save(folder / f"{stem}_{suffix}.{suffix}", **options, **kind)
        label = (folder.parents[1] / "labels" / folder.name / images[0].name).with_suffix(".txt").read_text()
        (folder.parents[1] / "labels" / folder.name / f"{stem}_{suffix}.txt").write_text(label)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("task", LABELED)
def test_labels_from_table_equal_labels_from_scan(module, scanned, tmp_path, task, private):
    source = draw(tmp_path / "set", task, train=30, val=12)
    write_realistic_labels(source.root, task)
    for split in ("train", "val"):
        add_odd_images(source.root / "images" / split)
    view = prepared(source.data, tmp_path / "run", task=task, private=private)
    expected = labels(module, view, table=False)
    scanned.clear()
    found = labels(module, view, table=True)

    assert_equal(found, expected)
    assert len(found) == 30 + 12 + 20
    assert 0 < len(scanned) < 2 * 8 + 20, "only samples and images that the table does not list must be scanned"


def test_labels_from_table_equal_labels_from_scan_with_single_class(module, tmp_path):
    view = prepared(draw(tmp_path / "set", Task.DETECT).data, tmp_path / "run")
    expected = labels(module, view, table=False, single_cls=True)
    found = labels(module, view, table=True, single_cls=True)

    assert_equal(found, expected)
    assert not any(label["cls"].any() for label in found)


def test_table_that_differs_from_labels_is_rejected(module, scanned, tmp_path, capsys):
    view = prepared(draw(tmp_path / "set", Task.DETECT).data, tmp_path / "run")
    table = view.root / "labels/train.npz"
    with np.load(table) as arrays:
        wrong = {**arrays, "values": arrays["values"] + np.float32(0.001)}
    np.savez(table, **wrong)
    expected = labels(module, view, table=False)
    scanned.clear()

    assert_equal(labels(module, view, table=True), expected)
    assert "scanning all images" in capsys.readouterr().out
    assert {f"{number:03}.png" for number in range(16)} <= set(scanned)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"x" * len(data), lambda data: b""])
def test_damaged_table_is_ignored(module, tmp_path, damage):
    view = prepared(draw(tmp_path / "set", Task.DETECT).data, tmp_path / "run")
    expected = labels(module, view, table=False)
    for split in ("train", "val"):
        table = view.root / f"labels/{split}.npz"
        table.write_bytes(damage(table.read_bytes()))

    assert_equal(labels(module, view, table=True), expected)


def test_image_missing_in_table_is_scanned(module, tmp_path):
    view = prepared(draw(tmp_path / "set", Task.DETECT).data, tmp_path / "run")
    for kind, suffix in {"images": "png", "labels": "txt"}.items():
        first = view.root / kind / "val" / f"000.{suffix}"
        (first.parent / f"more.{suffix}").write_bytes(first.read_bytes())

    assert_equal(labels(module, view, table=True), labels(module, view, table=False))


@pytest.mark.training
@pytest.mark.long
def test_training_with_table_writes_no_label_cache(tmp_path):
    view = prepared(draw(tmp_path / "set", Task.DETECT).data, tmp_path / "run")
    run = run_child(order_for(view, tmp_path / "run", epochs=1), tmp_path, env={FAST_LOADER: str(1 << 30)})

    assert isinstance(run.last, Finished), run.output
    assert not list((view.root / "labels").glob("*.cache"))
