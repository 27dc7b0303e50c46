"""Synthetic photos for the benchmarks of the loader: gradients with noise, so that they decode like photos."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.core.dataset import PreparedDataset, Task
from trainer.training.supervisor.environment import child_environment, private_folder

STORED = 20 << 30  # limit of the stored pixels, in bytes
BATCH = 8


def photos(root: Path, width: int, height: int, *, train: int, val: int = 2) -> PreparedDataset:
    """Create a dataset of photos of this size with one box each. All photos are the same image, shifted."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack([np.sin(x / rng.integers(50, 400) + y / rng.integers(50, 400)) for _ in range(3)], -1)
    photo = np.clip(128 + 90 * waves + rng.integers(-12, 12, waves.shape), 0, 255).astype(np.uint8)
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


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a training process, which the baseline also uses."""
    return child_environment(os.environ, private_folder(home, home), devices=())
