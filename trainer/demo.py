"""The demonstration: draw a small labeled dataset, and train a run on it. The dataset is reproducible.

The folder of the demo contains all files: the dataset, the queue, the run folder and the published model.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, ImageDraw

from trainer.settings import process_environment

# -P: Python does not import a folder named `trainer` in the working directory; see service_environment
SERVICE = (sys.executable, "-P", "-m", "trainer.cli")

CLASSES = ("circle", "square", "triangle")
EVERY_VAL = 5  # every fifth image belongs to the val split

# With these settings, the training takes less than a minute on two cores. Mosaic and strong scaling would reduce the
# quality, because the objects are small and the training is short.
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
    """Draw `images` images of `size` x `size` pixels with YOLO labels into `folder`. Return the path of data.yaml.

    Each image shows one to three shapes on noise. The shapes do not overlap.
    """
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)  # noqa: S311 - the numbers are for images, not for keys
    for index in range(images):
        split = "val" if index % EVERY_VAL == 0 else "train"
        _draw_image(folder, split, f"shapes_{index:04d}", size, rng)
    data = folder / "data.yaml"
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    data.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return data


def _draw_image(folder: Path, split: str, name: str, size: int, rng: random.Random) -> None:
    noise = Image.frombytes("RGB", (size, size), bytes(rng.choices(range(40, 110), k=3 * size * size)))
    draw = ImageDraw.Draw(noise)
    labels = []
    for left, top, side in _squares(size, rng):
        kind = rng.randrange(len(CLASSES))
        color = tuple(rng.randrange(150, 256) for _ in range(3))
        _draw_shape(draw, CLASSES[kind], left, top, side, color)
        center_x, center_y, share = (left + side / 2) / size, (top + side / 2) / size, side / size
        labels.append(f"{kind} {center_x:.6f} {center_y:.6f} {share:.6f} {share:.6f}\n")
    noise.save(folder / "images" / split / f"{name}.png")
    (folder / "labels" / split / f"{name}.txt").write_text("".join(labels))


def _squares(size: int, rng: random.Random) -> Iterator[tuple[int, int, int]]:
    """Yield one to three squares (left, top, side) in pixels, at most one per quarter of the image."""
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
            # the corners touch the sides of the bounding box, so the label is exact
            draw.polygon([(left + side // 2, top), (left + side, top + side), (left, top + side)], fill=color)


def run_demo(folder: Path, epochs: int | None) -> int:
    """Start a service in `folder`, train one run on a drawn dataset and show the result. Return the exit code."""
    environment = service_environment() | {
        "BACKEND": "local",
        "TRAINER_HOME": str(folder),
        "POLL_INTERVAL": "0.5",
        "PROGRESS_INTERVAL": "1",
        "CANCEL_CHECK_INTERVAL": "1",
        "LOG_FORMAT": "console",
    }
    data = draw_dataset(folder / "datasets" / "shapes")
    print(f"Dataset: {data.parent}")
    with (folder / "service.log").open("ab") as log, running_service(environment, log):
        configuration = CONFIGURATION | ({"epochs": epochs} if epochs else {})
        run = ("--data", str(data), "--model", MODEL, "--name", "demo", "--config", json.dumps(configuration))
        enqueued = subprocess.run(
            [*SERVICE, "enqueue", *run], env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        watched = subprocess.run([*SERVICE, "watch", enqueued.stdout.strip()], env=environment, check=False)
    print(f"Log of the service: {folder / 'service.log'}")
    return watched.returncode


def service_environment() -> dict[str, str]:
    """Return the environment of this process, changed so that SERVICE imports the same package, installed or not."""
    environment = dict(process_environment())
    paths = (str(Path(__file__).parents[1]), environment.get("PYTHONPATH"))
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextmanager
def running_service(environment: Mapping[str, str], log: IO[bytes]) -> Iterator[None]:
    """Run the service in a separate process while the block runs, then stop the service with SIGTERM, like systemd."""
    service = subprocess.Popen(SERVICE, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        service.terminate()
        service.wait()
