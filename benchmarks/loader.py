"""How fast images reach the model: `python -m benchmarks.loader [--tiny]`.

Synthetic photos (gradients under noise, so that they decode like photos) go through Ultralytics' own training loader in a
process of its own, as it is and with kept pixels (trainer/training/fast_loader.py); then a whole training does, as a
plain script and as our training process. Of the loader CPU seconds are told, because they mean something on a busy machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.figures import Figure
from trainer.core.dataset import PreparedDataset, Task
from trainer.core.plan import Architecture, TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopSignal
from trainer.training.environment import child_environment, private_folder
from trainer.training.process import ChildTrainer

MODEL = "yolo11n.yaml"
KEPT = 20 << 30  # bytes of pixels
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch through the loader took; `digest` is of all its batches."""

    seconds: float
    cpu: float
    digest: str


def photos(root: Path, width: int, height: int, *, train: int, val: int = 2) -> PreparedDataset:
    """A dataset of photos of this size with a box each: one picture, shifted."""
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
    return PreparedDataset(root=root, data=data, task=Task.DETECT, names=("a", "b"), images=images, fingerprint="0" * 64)


def environment(home: Path) -> dict[str, str]:
    """The training process' own, for the plain script as well."""
    return child_environment(os.environ, private_folder(home, home), home, devices=(), threads=None)


def loaded(dataset: PreparedDataset, home: Path, *, imgsz: int, kept: int) -> list[Epoch]:
    """Two epochs through the loader in a fresh process; the second one finds what the first one kept."""
    asked = json.dumps({"data": str(dataset.data), "imgsz": imgsz, "kept": kept})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "--epochs-of", asked],
        env=environment(home), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [Epoch(**epoch) for epoch in json.loads(done.stdout.splitlines()[-1])]


def epochs_of(data: str, imgsz: int, kept: int) -> list[Epoch]:
    """What `loaded` starts: the loader alone, without a model, on one core."""
    import random

    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from trainer.training.fast_loader import install

    if kept:
        install(kept)
    document = check_det_dataset(data)
    epochs = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - what Ultralytics draws from
        torch.manual_seed(0)
        cfg = get_cfg(overrides={"imgsz": imgsz, "data": data})
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
    """A whole training: wall seconds, and what its weights are."""

    seconds: float
    weights: str


def trained_bare(dataset: PreparedDataset, home: Path, imgsz: int, epochs: int) -> Trained:
    """A plain script that gives Ultralytics the same arguments."""
    run = home / "bare"
    order = {"model": MODEL, "data": str(dataset.data), "save_dir": str(run), "device": "cpu", **arguments(imgsz, epochs)}

    def train() -> None:
        command = [sys.executable, "-m", "benchmarks.bare", json.dumps([order])]
        subprocess.run(command, env=environment(home), capture_output=True, check=True)

    return _timed(train, run)


def trained_ours(dataset: PreparedDataset, home: Path, imgsz: int, epochs: int) -> Trained:
    """Our training process, started for it."""
    trainer = ChildTrainer(environment=os.environ, home=home, weights=home, fast_loader_bytes=KEPT)
    more = arguments(imgsz, epochs)
    plan = TrainPlan(
        sources=("x",), model=Architecture(stem="yolo11n"), task=Task.DETECT, epochs=more.pop("epochs"), batch=more.pop("batch"),
        imgsz=more.pop("imgsz"), device=(), args=more,
    )  # fmt: skip
    order = TrainingOrder(plan=plan, model=Path(MODEL), dataset=dataset, run_dir=home / "ours")
    try:
        return _timed(lambda: trainer.train(order, StopSignal(), lambda _event: None, lambda _line: None), order.run_dir)
    finally:
        trainer.close()


def arguments(imgsz: int, epochs: int) -> dict[str, int | bool]:
    return {"imgsz": imgsz, "epochs": epochs, "batch": BATCH, "workers": 2, "seed": 0, "plots": False}


def _timed(train, run: Path) -> Trained:  # noqa: ANN001
    began = time.perf_counter()
    train()
    return Trained(seconds=time.perf_counter() - began, weights=_weights(run / "weights/last.pt"))


def _weights(path: Path) -> str:
    """A digest of the numbers alone: the file also holds when and where it was made."""
    with zipfile.ZipFile(path) as archive:
        numbers = sorted(name for name in archive.namelist() if re.search(r"/data/\d+$", name))
        return hashlib.sha256(b"".join(archive.read(name) for name in numbers)).hexdigest()


def figures(*, tiny: bool) -> Iterator[Figure]:
    sizes = {"12 MP": (4000, 3000, 8.0, 640), "1080p": (1920, 1080, 2.0, 640), "640-pixel": (640, 480, 0.95, 640)}
    count, smaller = (4, 8) if tiny else (24, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for title, (width, height, target, imgsz) in sizes.items():
            dataset = photos(folder / title, width // smaller, height // smaller, train=count)
            bare = loaded(dataset, folder / "home", imgsz=imgsz // smaller, kept=0)[1]
            first, kept = loaded(dataset, folder / "home", imgsz=imgsz // smaller, kept=KEPT)
            ratio = bare.cpu / kept.cpu
            yield Figure(
                what=f"loader on {title} photos, one core of CPU",
                target=f"≥ {target:g} x bare" if target > 1 else "not slower than bare",
                measured=f"{ratio:.1f} x ({kept.cpu / count * 1000:.0f} ms per image; first epoch {first.cpu / count * 1000:.0f} ms)",
                met=ratio >= target and bare.digest == first.digest == kept.digest,
                peer=f"{bare.cpu / count * 1000:.0f} ms per image",
                why="what is left is augmentation, which is the same for both" if bare.digest == kept.digest else "other bits",
            )
        yield from _training(folder, count=8 if tiny else 120, epochs=2 if tiny else 10, smaller=smaller)


def _training(folder: Path, *, count: int, epochs: int, smaller: int) -> Iterator[Figure]:
    imgsz = 64 if smaller > 1 else 160
    dataset = photos(folder / "trained", 4000 // smaller, 3000 // smaller, train=count, val=4)
    bare = trained_bare(dataset, folder / "home", imgsz, epochs)
    ours = trained_ours(dataset, folder / "home", imgsz, epochs)
    ratio, is_same = ours.seconds / bare.seconds, ours.weights == bare.weights
    yield Figure(
        what=f"training on {count} photos of 12 MP, imgsz {imgsz}, {epochs} epochs, start included",
        target="≤ 0.45 x bare, the same weights",
        measured=f"{ratio:.2f} x ({ours.seconds:.0f} s; weights {'the same' if is_same else 'differ'})",
        met=ratio <= 0.45 and is_same,
        peer=f"{bare.seconds:.0f} s",
        why="the model's own work shares the cores; the start and the first epoch take as long as bare" if is_same else "other weights",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="once, small: only to see that it works")
    parser.add_argument("--epochs-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epochs_of:
        print(json.dumps([vars(epoch) for epoch in epochs_of(**options.epochs_of)]))
        return
    for figure in figures(tiny=options.tiny):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
