"""Measure a whole training with stored pixels: `python -m benchmarks.stored_pixels [--tiny]`.

The training runs three times: as the baseline, in our training process without stored pixels, and in a second training
process. The second training process uses the pixels that the first one stored.
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

from benchmarks.datasets import OnDisk
from benchmarks.figures import Figure, middle
from benchmarks.photos import BATCH, STORED, environment, photos
from trainer.core.dataset import DatasetOrder, PreparedDataset, Task
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots
from trainer.training.supervisor.process import ChildTrainer

MODEL = "yolo11n.yaml"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The wall seconds of a whole training, and the hash of its weights."""

    seconds: float
    weights: str


def train_baseline(dataset: PreparedDataset, home: Path, imgsz: int, epochs: int) -> Trained:
    """Train with a plain script that gives Ultralytics the same arguments."""
    run = home / "baseline"
    training = {
        "model": MODEL,
        "data": str(dataset.data),
        "save_dir": str(run),
        "device": "cpu",
        **arguments(imgsz, epochs),
    }

    def train() -> None:
        command = [sys.executable, "-m", "benchmarks.baseline", json.dumps([training])]
        subprocess.run(command, env=environment(home), capture_output=True, check=True)

    return _timed(train, run)


def train_ours(dataset: PreparedDataset, home: Path, imgsz: int, epochs: int) -> Trained:
    """Train with our training process."""
    trainer = ChildTrainer(environment=os.environ, home=home, weights=home, fast_loader_bytes=STORED)
    args = arguments(imgsz, epochs)
    plan = TrainPlan(
        sources=("x",), model=Architecture(stem="yolo11n"), task=Task.DETECT, epochs=args.pop("epochs"), batch=args.pop("batch"),
        imgsz=args.pop("imgsz"), device=(), args=args,
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
    started = time.perf_counter()
    train()
    return Trained(seconds=time.perf_counter() - started, weights=_weights(run / "weights/last.pt"))


def _weights(path: Path) -> str:
    """Return the hash of the weights. The other content of the file, for example a time and paths, is omitted."""
    with zipfile.ZipFile(path) as archive:
        numbers = sorted(name for name in archive.namelist() if re.search(r"/data/\d+$", name))
        return hashlib.sha256(b"".join(archive.read(name) for name in numbers)).hexdigest()


def _training(folder: Path, tiny: bool) -> Iterator[Figure]:
    count, epochs, imgsz, smaller = (8, 2, 64, 8) if tiny else (120, 10, 160, 1)
    photos(folder / "trained", 4000 // smaller, 3000 // smaller, train=count, val=4)
    datasets = FetchedDatasets(
        OnDisk(is_private=False), ReferenceRules(Roots(folder), "datasets"), pixels=PixelCache(ContentCache(folder / "cache", max_bytes=STORED)), decode=here,
    )  # fmt: skip
    baseline: list[Trained] = []
    ours: dict[str, list[Trained]] = {"no pixels stored before": [], "pixels stored before": []}
    for turn in range(1 if tiny else 2):
        baseline.append(
            train_baseline(_view(datasets, folder, f"baseline{turn}", imgsz), folder / f"home{turn}", imgsz, epochs)
        )
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for name, found in ours.items():
            view = _view(datasets, folder, name, imgsz)
            found.append(train_ours(view, folder / f"{name}{turn}", imgsz, epochs))
            datasets.discard(view.root.parent)
    for name, found in ours.items():
        ratio = median(one.seconds / other.seconds for one, other in zip(found, baseline, strict=True))
        is_same = {one.weights for one in found} == {one.weights for one in baseline}
        yield Figure(
            what=f"training including its start: {count} photos of 12 MP, imgsz {imgsz}, {epochs} epochs, {name}",
            target="≤ 0.45 x the baseline, the same weights",
            measured=f"{ratio:.2f} x: {middle([one.seconds for one in found], digits=0)}, {'the same' if is_same else 'different'} weights",
            met=ratio <= 0.45 and is_same,
            peer=middle([one.seconds for one in baseline], digits=0),
            why="in the first epoch, the decoding of the images uses the same cores as the model"
            if is_same
            else "different weights",
        )


def _view(datasets: FetchedDatasets, folder: Path, name: str, imgsz: int) -> PreparedDataset:
    view = folder / f"view of {name}"
    order = DatasetOrder(sources=(str(folder / "trained"),), imgsz=imgsz)
    return datasets.prepare(order, view, StopSignal(), lambda _: None)


def figures(*, tiny: bool) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as name:
        yield from _training(Path(name).resolve(), tiny)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    for figure in figures(tiny=parser.parse_args().tiny):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
