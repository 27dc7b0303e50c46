"""Stored pixels: every batch and every weight has the same bits as without them."""

from __future__ import annotations

import os
import random
import time
import warnings

import numpy as np
import psutil
import pytest
from child_run import order_for, run_child
from drawn import draw
from PIL import Image

from tests.dataset_painter import OnDisk
from trainer.core.dataset import DatasetOrder, Task
from trainer.core.events import Finished
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import Roots
from trainer.settings import Settings
from trainer.training.wire import FAST_LOADER
from trainer.wiring.host import build_trainer

LABELED = [Task.DETECT, Task.SEGMENT, Task.POSE, Task.OBB]
IMGSZ = 32  # the images have 64
SAMPLES = 3  # linked files that are compared


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
        import ultralytics.data.base  # noqa: F401 - the first import prints a warning

        yield


@pytest.fixture
def base(monkeypatch):
    """Ultralytics' module, restored after the test."""
    import ultralytics.data.base as module

    for method in ("load_image", "__init__"):
        monkeypatch.setattr(module.BaseDataset, method, getattr(module.BaseDataset, method))
    return module


def install(most_bytes=1 << 30):
    from trainer.training.speedups.pixels import install as really

    really(most_bytes)


def make_odd(folder):
    """Write images as phones, scanners and drawing programs save them."""
    images = sorted(folder.iterdir())
    first = Image.open(images[0]).resize((90, 70))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    first.save(folder / "turned.jpg", exif=exif)
    first.convert("L").save(folder / "gray.png")
    first.convert("RGBA").save(folder / "clear.png")
    Image.fromarray(np.arange(70 * 90, dtype=np.uint16).reshape(70, 90) * 10).save(folder / "deep.png")
    first.resize((IMGSZ, 20)).save(folder / "exact.png")
    first.resize((16, 20)).save(folder / "small.png")
    label = (folder.parents[1] / "labels" / folder.name / images[0].name).with_suffix(".txt").read_text()
    for name in ("turned", "gray", "clear", "deep", "exact", "small"):
        (folder.parents[1] / "labels" / folder.name / f"{name}.txt").write_text(label)


def epoch(data_yaml, task, mode="train", **arguments):
    """Return one epoch's batches, always with the same random numbers."""
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


def forbid_decoding(base, monkeypatch, *, but=()):
    real = base.imread

    def imread(name, **more):
        assert str(name).endswith(but), f"{name} was decoded again"
        return real(name, **more)

    monkeypatch.setattr(base, "imread", imread)


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("task", LABELED)
def test_batches_from_stored_pixels_are_equal(base, monkeypatch, tmp_path, task, mode):
    view = draw(tmp_path / "data", task)
    make_odd(view.root / "images" / mode)
    bare = epoch(view.data, task, mode)
    install()
    first = epoch(view.data, task, mode)
    forbid_decoding(base, monkeypatch, but=("exact.png", "small.png"))  # these are not stored
    again = epoch(view.data, task, mode)

    assert_equal(bare, first)
    assert_equal(bare, again)
    images = len(list((view.root / "images" / mode).iterdir()))
    assert len(stored_files(view)) == images - 2


def test_stretched_images_of_rt_detr_are_equal(base, monkeypatch, tmp_path):
    from ultralytics.cfg import get_cfg
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.models.rtdetr.val import RTDETRDataset

    view = draw(tmp_path / "data", Task.DETECT)
    make_odd(view.root / "images/val")
    data = check_det_dataset(str(view.data))

    def images():
        dataset = RTDETRDataset(img_path=data["val"], imgsz=IMGSZ, augment=True, hyp=get_cfg(), data=data)
        return [dataset.load_image(i) for i in [*range(len(dataset)), *range(len(dataset))]]

    bare = images()
    install()
    first = images()
    forbid_decoding(base, monkeypatch, but=("exact.png", "small.png"))

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
    for kept in stored_files(view):
        kept.write_bytes(damage(kept.read_bytes()))

    assert [batch["img"].tolist() for batch in epoch(view.data, Task.DETECT, "val")] == [
        b["img"].tolist() for b in bare
    ]
    assert_equal(bare, epoch(view.data, Task.DETECT, "val"))


def test_stored_pixels_respect_limit(base, tmp_path):
    view = draw(tmp_path / "data", Task.DETECT)
    bare = epoch(view.data, Task.DETECT)
    install(most_bytes=5 * IMGSZ * IMGSZ * 3)

    assert_equal(bare, epoch(view.data, Task.DETECT))
    assert_equal(bare, epoch(view.data, Task.DETECT))
    assert len(stored_files(view)) == 5


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_requested_cache_mode_is_respected(base, tmp_path, cache):
    view = draw(tmp_path / "data", Task.DETECT)
    install()
    epoch(view.data, Task.DETECT, cache=cache, deterministic=False)

    assert not (view.root / "pixels").exists()


def test_unwritable_disk_does_not_change_batches(base, tmp_path):
    view = draw(tmp_path / "data", Task.DETECT)
    bare = epoch(view.data, Task.DETECT)
    (view.root / "pixels").write_text("in the way")
    install()

    assert_equal(bare, epoch(view.data, Task.DETECT))
    assert_equal(bare, epoch(view.data, Task.DETECT))


def prepared_again(datasets, view, kept):
    """Return the view of a second run, with the files that the first one stored."""
    folder = view.root.parent
    order = DatasetOrder(run_id=kept, sources=(str(view.data),), task=view.task, imgsz=IMGSZ)
    return datasets.prepare(order, folder / kept, StopSignal(), lambda _: None)


@pytest.fixture
def two_runs(tmp_path):
    """Prepare one dataset for two runs in a row."""
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 30, reserve=0)
    return FetchedDatasets(OnDisk(), Roots(tmp_path), "datasets", pixels=PixelCache(cache))


@pytest.mark.parametrize("task", LABELED)
def test_second_run_decodes_samples_only(base, monkeypatch, tmp_path, two_runs, task):
    source = draw(tmp_path / "data", task)
    make_odd(source.root / "images/train")
    install()
    first = prepared_again(two_runs, source, "first")
    bare = epoch(first.data, task)
    two_runs.discard(first.root)
    second = prepared_again(two_runs, source, "second")
    decoded = []
    real = base.imread
    monkeypatch.setattr(base, "imread", lambda name, **more: decoded.append(name) or real(name, **more))

    again = epoch(second.data, task)

    assert len({name for name in decoded if not str(name).endswith(("exact.png", "small.png"))}) == SAMPLES
    for one, other in zip(bare, again, strict=True):
        for key in one.keys() - {"im_file"}:
            assert same(one[key], other[key]), key


def test_wrong_linked_pixels_remove_all_stored_pixels(base, tmp_path, two_runs, capsys):
    source = draw(tmp_path / "data", Task.DETECT)
    install()
    first = prepared_again(two_runs, source, "first")
    bare = epoch(first.data, Task.DETECT)
    for kept in stored_files(first):
        data = bytearray(kept.read_bytes())
        data[200] ^= 1
        kept.write_bytes(data)
    two_runs.discard(first.root)
    second = prepared_again(two_runs, source, "second")
    assert len(stored_files(second)) == 16

    again = epoch(second.data, Task.DETECT)

    assert "removing all stored pixels" in capsys.readouterr().out
    for one, other in zip(bare, again, strict=True):
        assert same(one["img"], other["img"])
    # files that are stored from now on are correct
    two_runs.discard(second.root)
    third = prepared_again(two_runs, source, "third")
    epoch(third.data, Task.DETECT)
    assert "removing all stored pixels" not in capsys.readouterr().out


def test_additional_processes_store_pixels_ahead(base, tmp_path):
    import multiprocessing

    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from trainer.training.speedups.pixels import work_ahead

    view = draw(tmp_path / "data", Task.DETECT)
    make_odd(view.root / "images/train")
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

    assert len(stored_files(view)) == 8 + 16 + 4  # two of the six odd images are small
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


def weights(run_dir):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.load(run_dir / "weights/last.pt", weights_only=False)["model"].state_dict()
    return {name: value.numpy().tobytes() for name, value in state.items()}


@pytest.mark.training
@pytest.mark.long
@pytest.mark.parametrize("task", LABELED)
def test_weights_and_metrics_are_equal_with_stored_pixels(tmp_path, task):
    runs = {}
    for most_bytes in (0, 1 << 30):
        home = tmp_path / str(most_bytes)
        view = draw(tmp_path / "data", task)
        order = order_for(view, home / "run", epochs=2, imgsz=IMGSZ, args={"workers": 2 if task is Task.DETECT else 0})
        run = run_child(order, home, env={FAST_LOADER: str(most_bytes)})
        assert isinstance(run.last, Finished), run.output
        assert (view.root / "pixels").exists() is bool(most_bytes)
        rows = (home / "run/results.csv").read_text().splitlines()
        runs[most_bytes] = weights(home / "run"), [row.split(",")[2:] for row in rows]

    assert runs[0] == runs[1 << 30]


@pytest.mark.parametrize(("is_on", "most_bytes"), [(True, 2 * 10**9), (False, 0)])
def test_setting_reaches_training_process(tmp_path, is_on, most_bytes):
    settings = Settings(trainer_home=tmp_path, fast_loader=is_on, dataset_cache_gb=2, warm_start=True)
    before = psutil.Process().children(recursive=True)
    trainer = build_trainer(settings)
    try:
        trainer.warm()
        started = [process for process in psutil.Process().children(recursive=True) if process not in before]
        deadline = time.monotonic() + 10
        while (told := {process.environ().get(FAST_LOADER) for process in started}) == {None}:
            assert time.monotonic() < deadline  # between fork and exec it has our environment
        assert told == {str(most_bytes)}
    finally:
        trainer.close()
