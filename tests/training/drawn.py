"""Tiny generated datasets for every task: colored rectangles on gray, always the same."""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

from trainer.core.dataset import PreparedDataset, Task

SIZE = 64  # width and height of the images in pixels
NAMES = ("red", "green")
_COLORS = ((220, 40, 40), (40, 200, 60))


def draw(root: Path, task: Task, *, train: int = 16, val: int = 8, test: int = 0) -> PreparedDataset:
    """Create a dataset in `root`, and return it in the form that `prepare` returns."""
    counts = {split: n for split, n in {"train": train, "val": val, "test": test}.items() if n}
    rng = random.Random(7)
    for split, count in counts.items():
        for number in range(count):
            _draw_image(root, task, split, number, rng)
    data = root if task is Task.CLASSIFY else _yaml(root, task, counts)
    return PreparedDataset(root=root, data=data, task=task, names=NAMES, images=counts, fingerprint="0" * 64)


def _draw_image(root: Path, task: Task, split: str, number: int, rng: random.Random) -> None:
    c = number % 2
    image = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    w, h = rng.uniform(20, 34), rng.uniform(20, 34)
    x, y = rng.uniform(w / 2 + 4, SIZE - w / 2 - 4), rng.uniform(h / 2 + 4, SIZE - h / 2 - 4)
    corners = [(x - w / 2, y - h / 2), (x + w / 2, y - h / 2), (x + w / 2, y + h / 2), (x - w / 2, y + h / 2)]
    if task is Task.OBB:
        corners = [_rotated(px - x, py - y, 0.3, x, y) for px, py in corners]
    ImageDraw.Draw(image).polygon(corners, fill=_COLORS[c])
    if task is Task.CLASSIFY:
        folder = root / split / NAMES[c]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:03}.png")
        return
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    image.save(root / "images" / split / f"{number:03}.png")
    box = [x, y, w, h]
    points = [value for corner in corners for value in corner]
    keypoints = [value for px, py in corners for value in (px / SIZE, py / SIZE, 2)]
    values = {
        Task.DETECT: [v / SIZE for v in box],
        Task.SEGMENT: [v / SIZE for v in points],
        Task.OBB: [v / SIZE for v in points],
        Task.POSE: [v / SIZE for v in box] + keypoints,
    }[task]
    row = " ".join([str(c), *(f"{value:.6f}" for value in values)])
    (root / "labels" / split / f"{number:03}.txt").write_text(row + "\n")


def _rotated(dx: float, dy: float, angle: float, x: float, y: float) -> tuple[float, float]:
    return x + dx * math.cos(angle) - dy * math.sin(angle), y + dx * math.sin(angle) + dy * math.cos(angle)


def _yaml(root: Path, task: Task, counts: dict[str, int]) -> Path:
    lines = [f"path: {root}", *(f"{split}: images/{split}" for split in counts), "names:"]
    lines += [f"  {i}: {name}" for i, name in enumerate(NAMES)]
    if task is Task.POSE:
        lines += ["kpt_shape: [4, 3]", "flip_idx: [1, 0, 3, 2]"]
    path = root / "data.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
