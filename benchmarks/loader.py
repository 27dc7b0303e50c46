"""Measure how fast images reach the model: `python -m benchmarks.loader [--tiny]`.

Synthetic photos pass through Ultralytics' own training loader in a separate process, with and without stored pixels
(trainer/training/speedups/pixels.py). The figures are CPU seconds, which are meaningful even on a busy host.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from benchmarks.photos import BATCH, STORED, environment, photos
from trainer.core.dataset import PreparedDataset

EPOCHS = 4  # only the loader, without a model; the result is the fastest epoch after the first


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The wall and CPU seconds of the loader for one epoch. `digest` is the hash of all batches of the epoch."""

    seconds: float
    cpu: float
    digest: str


def fastest(epochs: list[Epoch]) -> Epoch:
    assert len({epoch.digest for epoch in epochs}) == 1, (
        "epochs with the same random numbers must have the same batches"
    )
    return min(epochs, key=lambda epoch: epoch.cpu)


def loaded(dataset: PreparedDataset, home: Path, *, imgsz: int, stored: int, cache: str = "") -> list[Epoch]:
    """Run epochs through the loader in a new process. If `stored` is not 0, the first epoch stores pixels for the others."""
    arguments = json.dumps({"data": str(dataset.data), "imgsz": imgsz, "stored": stored, "cache": cache})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "--epochs-of", arguments],
        env=environment(home), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [Epoch(**epoch) for epoch in json.loads(done.stdout.splitlines()[-1])]


def epochs_of(data: str, imgsz: int, stored: int, cache: str) -> list[Epoch]:
    """Run the epochs in the process that `loaded` starts: only the loader, on one core, without a model."""
    import random

    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from trainer.training.speedups.pixels import install

    if stored:
        install(stored)
    document = check_det_dataset(data)
    epochs = []
    for _ in range(EPOCHS):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the generator that Ultralytics uses
        torch.manual_seed(0)
        cfg = get_cfg(overrides={"imgsz": imgsz, "data": data, "cache": cache or False})
        dataset = build_yolo_dataset(cfg, document["train"], BATCH, document, mode="train", stride=32)
        digest, started, before = hashlib.sha256(), time.perf_counter(), time.process_time()
        samples = [dataset[i] for i in range(len(dataset))]
        seconds, cpu = time.perf_counter() - started, time.process_time() - before
        for sample in samples:
            digest.update(sample["img"].numpy().tobytes() + sample["bboxes"].numpy().tobytes())
        epochs.append(Epoch(seconds=seconds, cpu=cpu, digest=digest.hexdigest()))
    return epochs


def figures(*, tiny: bool) -> Iterator[Figure]:
    sizes = {"12 MP": (4000, 3000, 8.0, 640), "1080p": (1920, 1080, 2.0, 640), "640-pixel": (640, 480, 0.95, 640)}
    count, smaller = (4, 8) if tiny else (24, 1)
    if tiny:
        sizes = {"1080p": sizes["1080p"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for title, (width, height, target, imgsz) in sizes.items():
            dataset = photos(folder / title, width // smaller, height // smaller, train=count)
            baseline = fastest(loaded(dataset, folder / "home", imgsz=imgsz // smaller, stored=0)[1:])
            first, *later = loaded(dataset, folder / "home", imgsz=imgsz // smaller, stored=STORED)
            stored = fastest(later)
            ratio = baseline.cpu / stored.cpu
            yield Figure(
                what=f"loader on {title} photos, one CPU core",
                target=f"≥ {target:g} x as fast as the baseline" if target > 1 else "not slower than the baseline",
                measured=f"{ratio:.1f} x ({stored.cpu / count * 1000:.0f} ms per image, {first.cpu / count * 1000:.0f} ms in the first epoch)",
                met=ratio >= target and baseline.digest == first.digest == stored.digest,
                peer=f"{baseline.cpu / count * 1000:.0f} ms per image",
                why="the rest of the time is augmentation, which is the same for both"
                if baseline.digest == stored.digest
                else "the batches differ",
            )
            if title == "1080p":
                yield _choice_of_cache(dataset, folder / "home", imgsz // smaller, baseline, stored)


def _choice_of_cache(dataset: PreparedDataset, home: Path, imgsz: int, baseline: Epoch, stored: Epoch) -> Figure:
    """Compare stored pixels, the default, with `cache=ram` and `cache=disk` of Ultralytics."""
    others = {
        cache: fastest(loaded(dataset, home, imgsz=imgsz, stored=0, cache=cache)[1:]) for cache in ("ram", "disk")
    }
    for cached in dataset.root.rglob("images/*/*.npy"):
        cached.unlink()
    best = min(other.cpu for other in others.values())
    per_image = 1000 / dataset.images["train"]
    return Figure(
        what="stored pixels, the default if the row does not set `cache`",
        target="≤ 1.1 x the faster of `cache=ram` and `cache=disk`",
        measured=f"{stored.cpu * per_image:.1f} ms per image, the same batches as without a cache",
        met=stored.cpu <= 1.1 * best and stored.digest == baseline.digest,
        peer=f"no cache: {baseline.cpu * per_image:.1f} ms; "
        + "; ".join(
            f"{name}: {other.cpu * per_image:.1f} ms, {'the same' if other.digest == baseline.digest else 'different'} batches"
            for name, other in others.items()
        ),
        why="every image is read from its own file",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    parser.add_argument("--epochs-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epochs_of:
        print(json.dumps([vars(epoch) for epoch in epochs_of(**options.epochs_of)]))
        return
    for figure in figures(tiny=options.tiny):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
