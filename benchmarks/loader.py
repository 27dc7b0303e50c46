"""Measure how fast images reach the model: `python -m benchmarks.loader [--tiny]`.

Synthetic photos (gradients with noise, so that they decode like photos) pass through Ultralytics' own training loader in a
separate process, with and without kept pixels (trainer/training/speedups/pixels.py). Then a whole training runs as a plain
script and as our training process, without kept pixels and with those of the first training. Last, the labels of a large
dataset are read, by a scan and from the table of the check. The loader is measured in CPU seconds, which are meaningful on
a busy machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.datasets import OnDisk, make
from benchmarks.figures import Figure, middle
from trainer.core.dataset import DatasetOrder, PreparedDataset, Task
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import Roots
from trainer.training.supervisor.environment import child_environment, private_folder
from trainer.training.supervisor.process import ChildTrainer

MODEL = "yolo11n.yaml"
KEPT = 20 << 30  # bytes of pixels
BATCH = 8
EPOCHS = 4  # through the loader alone; the quickest after the first counts


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The cost of one epoch through the loader. `digest` is the hash of all its batches."""

    seconds: float
    cpu: float
    digest: str


def photos(root: Path, width: int, height: int, *, train: int, val: int = 2) -> PreparedDataset:
    """Create a dataset of photos of this size, one box each: the same image, shifted."""
    dice = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack([np.sin(x / dice.integers(50, 400) + y / dice.integers(50, 400)) for _ in range(3)], -1)
    photo = np.clip(128 + 90 * waves + dice.integers(-12, 12, waves.shape), 0, 255).astype(np.uint8)
    for split, count in {"train": train, "val": val}.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            shifted = np.roll(photo, (number + 1) * (31 if split == "train" else -31), axis=1)
            Image.fromarray(shifted).save(root / f"images/{split}/{number:03}.jpg", quality=90)
            (root / f"labels/{split}/{number:03}.txt").write_text(f"{number % 2} 0.5 0.5 0.4 0.4\n")
    data = root / "data.yaml"
    data.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [a, b]\n")
    images = {"train": train, "val": val}
    return PreparedDataset(
        root=root, data=data, task=Task.DETECT, names=("a", "b"), images=images, fingerprint="0" * 64
    )


def quickest(epochs: list[Epoch]) -> Epoch:
    assert len({epoch.digest for epoch in epochs}) == 1, "the same random numbers give the same batches"
    return min(epochs, key=lambda epoch: epoch.cpu)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a training process; the plain script uses it, too."""
    return child_environment(os.environ, private_folder(home, home), home, devices=())


def loaded(dataset: PreparedDataset, home: Path, *, imgsz: int, kept: int, cache: str = "") -> list[Epoch]:
    """Run epochs through the loader in a new process. All but the first use the pixels that the first one kept."""
    asked = json.dumps({"data": str(dataset.data), "imgsz": imgsz, "kept": kept, "cache": cache})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "--epochs-of", asked],
        env=environment(home), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [Epoch(**epoch) for epoch in json.loads(done.stdout.splitlines()[-1])]


def epochs_of(data: str, imgsz: int, kept: int, cache: str) -> list[Epoch]:
    """The process that `loaded` starts: the loader alone, without a model, on one core."""
    import random

    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from trainer.training.speedups.pixels import install

    if kept:
        install(kept)
    document = check_det_dataset(data)
    epochs = []
    for _ in range(EPOCHS):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - what Ultralytics draws from
        torch.manual_seed(0)
        cfg = get_cfg(overrides={"imgsz": imgsz, "data": data, "cache": cache or False})
        dataset = build_yolo_dataset(cfg, document["train"], BATCH, document, mode="train", stride=32)
        digest, began, before = hashlib.sha256(), time.perf_counter(), time.process_time()
        samples = [dataset[i] for i in range(len(dataset))]
        seconds, cpu = time.perf_counter() - began, time.process_time() - before
        for sample in samples:
            digest.update(sample["img"].numpy().tobytes() + sample["bboxes"].numpy().tobytes())
        epochs.append(Epoch(seconds=seconds, cpu=cpu, digest=digest.hexdigest()))
    return epochs


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The wall seconds of a whole training, and the hash of its weights."""

    seconds: float
    weights: str


def trained_bare(dataset: PreparedDataset, home: Path, imgsz: int, epochs: int) -> Trained:
    """Run a plain script that gives Ultralytics the same arguments."""
    run = home / "bare"
    order = {
        "model": MODEL,
        "data": str(dataset.data),
        "save_dir": str(run),
        "device": "cpu",
        **arguments(imgsz, epochs),
    }

    def train() -> None:
        command = [sys.executable, "-m", "benchmarks.bare", json.dumps([order])]
        subprocess.run(command, env=environment(home), capture_output=True, check=True)

    return _timed(train, run)


def trained_ours(dataset: PreparedDataset, home: Path, imgsz: int, epochs: int) -> Trained:
    """Run our training process."""
    trainer = ChildTrainer(environment=os.environ, home=home, weights=home, fast_loader_bytes=KEPT)
    more = arguments(imgsz, epochs)
    plan = TrainPlan(
        sources=("x",), model=Architecture(stem="yolo11n"), task=Task.DETECT, epochs=more.pop("epochs"), batch=more.pop("batch"),
        imgsz=more.pop("imgsz"), device=(), args=more,
    )  # fmt: skip
    order = TrainingOrder(plan=plan, model=Path(MODEL), dataset=dataset, run_dir=home / "ours")
    try:
        return _timed(
            lambda: trainer.train(order, StopSignal(), lambda _event: None, lambda _line: None), order.run_dir
        )
    finally:
        trainer.close()


def arguments(imgsz: int, epochs: int) -> dict[str, int | bool]:
    return {"imgsz": imgsz, "epochs": epochs, "batch": BATCH, "workers": 2, "seed": 0, "plots": False}


def _timed(train, run: Path) -> Trained:  # noqa: ANN001
    began = time.perf_counter()
    train()
    return Trained(seconds=time.perf_counter() - began, weights=_weights(run / "weights/last.pt"))


def _weights(path: Path) -> str:
    """Return the hash of the numbers alone, because the file also contains a time and paths."""
    with zipfile.ZipFile(path) as archive:
        numbers = sorted(name for name in archive.namelist() if re.search(r"/data/\d+$", name))
        return hashlib.sha256(b"".join(archive.read(name) for name in numbers)).hexdigest()


def figures(*, tiny: bool) -> Iterator[Figure]:
    sizes = {"12 MP": (4000, 3000, 8.0, 640), "1080p": (1920, 1080, 2.0, 640), "640-pixel": (640, 480, 0.95, 640)}
    count, smaller = (4, 8) if tiny else (24, 1)
    if tiny:
        sizes = {"1080p": sizes["1080p"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for title, (width, height, target, imgsz) in sizes.items():
            dataset = photos(folder / title, width // smaller, height // smaller, train=count)
            bare = quickest(loaded(dataset, folder / "home", imgsz=imgsz // smaller, kept=0)[1:])
            first, *later = loaded(dataset, folder / "home", imgsz=imgsz // smaller, kept=KEPT)
            kept = quickest(later)
            ratio = bare.cpu / kept.cpu
            yield Figure(
                what=f"loader on {title} photos, one core of CPU",
                target=f"≥ {target:g} x bare" if target > 1 else "not slower than bare",
                measured=f"{ratio:.1f} x ({kept.cpu / count * 1000:.0f} ms per image; first epoch {first.cpu / count * 1000:.0f} ms)",
                met=ratio >= target and bare.digest == first.digest == kept.digest,
                peer=f"{bare.cpu / count * 1000:.0f} ms per image",
                why="what is left is augmentation, which is the same for both"
                if bare.digest == kept.digest
                else "other bits",
            )
            if title == "1080p":
                yield _choice_of_cache(dataset, folder / "home", imgsz // smaller, bare, kept)
        yield from _training(folder, count=8 if tiny else 120, epochs=2 if tiny else 10, smaller=smaller)
        yield from _labels(folder, 100 if tiny else 50_000)


def _choice_of_cache(dataset: PreparedDataset, home: Path, imgsz: int, bare: Epoch, kept: Epoch) -> Figure:
    """Compare the default with the values of Ultralytics' `cache`."""
    others = {cache: quickest(loaded(dataset, home, imgsz=imgsz, kept=0, cache=cache)[1:]) for cache in ("ram", "disk")}
    for cached in dataset.root.rglob("images/*/*.npy"):
        cached.unlink()
    best = min(other.cpu for other in others.values())
    per_image = 1000 / dataset.images["train"]
    return Figure(
        what="cache, where the row is silent: kept pixels",
        target="as quick as Ultralytics' choices, or quicker",
        measured=f"{kept.cpu * per_image:.1f} ms per image, the bits of no cache",
        met=kept.cpu <= 1.1 * best and kept.digest == bare.digest,
        peer=f"off: {bare.cpu * per_image:.1f} ms; "
        + "; ".join(
            f"{name}: {other.cpu * per_image:.1f} ms, {'the same' if other.digest == bare.digest else 'other'} bits"
            for name, other in others.items()
        ),
        why="a file is read for each image",
    )


def _training(folder: Path, *, count: int, epochs: int, smaller: int) -> Iterator[Figure]:
    imgsz = 64 if smaller > 1 else 160
    photos(folder / "trained", 4000 // smaller, 3000 // smaller, train=count, val=4)
    datasets = FetchedDatasets(
        OnDisk(is_private=False), Roots(folder), "datasets", pixels=PixelCache(ContentCache(folder / "cache", max_bytes=KEPT)),
    )  # fmt: skip
    bare: list[Trained] = []
    ours: dict[str, list[Trained]] = {"nothing kept": [], "kept before": []}
    for turn in range(1 if smaller > 1 else 2):
        bare.append(trained_bare(_view(datasets, folder, f"bare{turn}", imgsz), folder / f"home{turn}", imgsz, epochs))
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for name, found in ours.items():
            view = _view(datasets, folder, name, imgsz)
            found.append(trained_ours(view, folder / f"{name}{turn}", imgsz, epochs))
            datasets.discard(view.root)
    for name, found in ours.items():
        ratio = median(one.seconds / other.seconds for one, other in zip(found, bare, strict=True))
        is_same = {one.weights for one in found} == {one.weights for one in bare}
        yield Figure(
            what=f"training on {count} photos of 12 MP, imgsz {imgsz}, {epochs} epochs, start included, {name}",
            target="≤ 0.45 x bare, the same weights",
            measured=f"{ratio:.2f} x ({middle([one.seconds for one in found], digits=0)}; weights {'the same' if is_same else 'differ'})",
            met=ratio <= 0.45 and is_same,
            peer=middle([one.seconds for one in bare], digits=0),
            why="the model's own work shares the cores with the decoding of the first epoch"
            if is_same
            else "other weights",
        )


def _view(datasets: FetchedDatasets, folder: Path, name: str, imgsz: int) -> PreparedDataset:
    view = folder / f"view of {name}"
    order = DatasetOrder(run_id=name, sources=(str(folder / "trained"),), imgsz=imgsz)
    return datasets.prepare(order, view, StopSignal(), lambda _: None)


def _labels(folder: Path, count: int) -> Iterator[Figure]:
    """Return the seconds to read the labels of a folder in a separate process."""
    make(folder / "many", count, 64)
    order = DatasetOrder(run_id="many", sources=(str(folder / "many"),))
    datasets = FetchedDatasets(OnDisk(is_private=True), Roots(folder), "datasets")
    view = datasets.prepare(order, folder / "view of many", StopSignal(), lambda _: None)
    seconds = {how: _seconds_to_labels(view, folder / "home", how) for how in ("table", "scan")}
    yield Figure(
        what=f"labels of {count:,} images read by the training process",
        target="≤ 2 s for 50,000",
        measured=f"{seconds['table']:.1f} s from the table, which is sampled against a scan",
        met=seconds["table"] <= 2.0,
        peer=f"Ultralytics' scan: {seconds['scan']:.1f} s",
        why="listing the images is what takes the time",
    )


def _seconds_to_labels(view: PreparedDataset, home: Path, how: str) -> float:
    asked = json.dumps({"data": str(view.data), "table": how == "table"})
    command = [sys.executable, "-m", "benchmarks.loader", "--labels-of", asked]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def labels_of(data: str, table: bool) -> float:
    """The process that `_seconds_to_labels` starts."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from trainer.training.speedups.labels import install

    if table:
        install()
    document = check_det_dataset(data)
    cfg = get_cfg(overrides={"imgsz": 64, "data": data})
    began = time.perf_counter()
    build_yolo_dataset(cfg, document["train"], BATCH, document, mode="train", stride=32)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="once, small: only to see that it works")
    parser.add_argument("--epochs-of", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--labels-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.labels_of:
        print(labels_of(**options.labels_of))
        return
    if options.epochs_of:
        print(json.dumps([vars(epoch) for epoch in epochs_of(**options.epochs_of)]))
        return
    for figure in figures(tiny=options.tiny):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
