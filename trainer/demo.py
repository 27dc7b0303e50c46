"""The demonstration: a small labeled dataset, drawn (shapes on noise, the same bytes each time), and a run that learns it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, ImageDraw

from trainer.settings import process_environment

SERVICE = [sys.executable, str(Path(__file__).parents[1] / "trainer_service.py")]

CLASSES = ("circle", "square", "triangle")
SPLITS = {"train": 0.8, "val": 0.2}

# What makes the drawn set learnable in a minute on two cores: mosaic and strong scaling only hurt when objects are
# this small and the training this short.
CONFIGURATION = {
    "epochs": 14,
    "batchSize": 8,
    "imgSize": 96,
    "learningRate": 0.003,
    "optimizer": "AdamW",
    "warmup_epochs": 1,
    "augmentation": {"mosaic": 0.0, "scale": 0.2, "translate": 0.05},
    "erasing": 0.0,
    "workers": 0,
    "compute": "cpu",
}
MODEL = "yolo11n.yaml"


def draw_dataset(folder: Path, images: int = 240, size: int = 96, seed: int = 7) -> Path:
    """Draw `images` pictures of `size`² pixels with YOLO labels into `folder`; the path of its data.yaml.

    Every fifth image belongs to the val split. An image holds one to three shapes that do not overlap.
    """
    for split in SPLITS:
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)  # noqa: S311 - pictures, not keys
    for index in range(images):
        split = "val" if index % round(1 / SPLITS["val"]) == 0 else "train"
        _draw_image(folder, split, f"shapes_{index:04d}", size, rng)
    data = folder / "data.yaml"
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    data.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return data


def _draw_image(folder: Path, split: str, name: str, size: int, rng: random.Random) -> None:

    noise = Image.frombytes("RGB", (size, size), bytes(rng.choices(range(40, 110), k=3 * size * size)))
    draw = ImageDraw.Draw(noise)
    labels = []
    for left, top, side in _places(size, rng):
        kind = rng.randrange(len(CLASSES))
        color = tuple(rng.randrange(150, 256) for _ in range(3))
        _draw_shape(draw, CLASSES[kind], left, top, side, color)
        center_x, center_y, share = (left + side / 2) / size, (top + side / 2) / size, side / size
        labels.append(f"{kind} {center_x:.6f} {center_y:.6f} {share:.6f} {share:.6f}\n")
    noise.save(folder / "images" / split / f"{name}.png")
    (folder / "labels" / split / f"{name}.txt").write_text("".join(labels))


def _places(size: int, rng: random.Random) -> Iterator[tuple[int, int, int]]:
    """Squares (left, top, side) in pixels, one to a quarter of the image, so that none covers another."""
    half = size // 2
    quarters = [(x, y) for x in (0, half) for y in (0, half)]
    for x, y in rng.sample(quarters, rng.randint(1, 3)):
        side = rng.randrange(half // 2, half - 4)
        yield x + rng.randrange(2, half - side), y + rng.randrange(2, half - side), side


def _draw_shape(draw: ImageDraw.ImageDraw, kind: str, left: int, top: int, side: int, color: tuple[int, ...]) -> None:

    box = (left, top, left + side, top + side)
    match kind:
        case "circle":
            draw.ellipse(box, fill=color)
        case "square":
            draw.rectangle(box, fill=color)
        case _:
            # the three corners touch the box's sides, so that the label is exact
            draw.polygon([(left + side // 2, top), (left + side, top + side), (left, top + side)], fill=color)


def run_demo(folder: Path, epochs: int | None) -> int:
    """Start a service below `folder`, train one drawn dataset with it and show the result; the exit code."""
    environment = {
        **process_environment(),
        "BACKEND": "local",
        "TRAINER_HOME": str(folder),
        "POLL_INTERVAL": "0.5",
        "PROGRESS_INTERVAL": "1",
        "CANCEL_CHECK_INTERVAL": "1",
        "LOG_FORMAT": "console",
    }
    data = draw_dataset(folder / "datasets" / "shapes")
    print(f"drew {data.parent}")
    with (folder / "service.log").open("ab") as log, running_service(environment, log):
        configuration = {**CONFIGURATION, **({"epochs": epochs} if epochs else {})}
        command = [
            "enqueue",
            "--data",
            str(data),
            "--model",
            MODEL,
            "--name",
            "demo",
            "--config",
            json.dumps(configuration),
        ]
        run_id = subprocess.run(
            [*SERVICE, *command], env=environment, check=True, capture_output=True, text=True
        ).stdout
        code = subprocess.run([*SERVICE, "watch", run_id.strip()], env=environment, check=False).returncode
    print(f"the service's own log: {folder / 'service.log'}")
    return code


@contextmanager
def running_service(environment: Mapping[str, str], log: IO[bytes]) -> Iterator[None]:
    """The service as a process of its own, stopped the way systemd stops it."""
    service = subprocess.Popen(SERVICE, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        service.terminate()
        service.wait()
