"""Make small labeled datasets, identical on every host. Each image has one bright square or disc on gray noise."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from trainer.core.dataset import DatasetOrder, PreparedDataset, SplitRequest, Task
from trainer.core.stop import StopSignal
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.fetched_tree import Fetched
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots

NAMES = ("square", "disc")


@dataclass(frozen=True)
class Drawn:
    """One painted image. `box` is center x, center y, width and height as shares of the image."""

    image: Image.Image
    cls: int
    box: tuple[float, float, float, float]

    def row(self, task: Task = Task.DETECT) -> str:
        x, y, w, h = self.box
        corners = (x - w / 2, y - h / 2, x + w / 2, y - h / 2, x + w / 2, y + h / 2, x - w / 2, y + h / 2)
        numbers = {
            Task.DETECT: self.box,
            Task.SEGMENT: (*corners, x - w / 2, y),
            Task.OBB: corners,
            Task.POSE: (*self.box, x, y, 2.0, x - w / 2, y, 1.0),
        }[task]
        return " ".join([str(self.cls), *(f"{number:.6f}" for number in numbers)])


def drawn(number: int, size: int = 32) -> Drawn:
    """Return the image with this number. The classes of consecutive images alternate."""
    rng = random.Random(number)
    noise = hashlib.shake_128(str(number).encode()).digest(size * size)
    image = Image.frombytes("L", (size, size), noise).point(lambda v: v // 4).convert("RGB")
    side = rng.randrange(size // 4, size // 2)
    left, top = rng.randrange(size - side), rng.randrange(size - side)
    draw = ImageDraw.Draw(image)
    shape = draw.rectangle if number % 2 == 0 else draw.ellipse
    shape((left, top, left + side - 1, top + side - 1), fill=(255, 200 * (number % 2), 40))
    box = ((left + side / 2) / size, (top + side / 2) / size, side / size, side / size)
    return Drawn(image, number % 2, box)


def paint(
    root: Path,
    *,
    train: int = 6,
    val: int = 2,
    task: Task = Task.DETECT,
    images: str = "images/{split}",
    labels: str = "labels/{split}",
    suffix: str = "jpg",
    yaml: str | None = "",
) -> Path:
    """Make a dataset in `root` and return the path of data.yaml. `yaml`: None for no file, "" for the default file."""
    number = 0
    for split, count in {"train": train, "val": val}.items():
        pictures, texts = root / images.format(split=split), root / labels.format(split=split)
        pictures.mkdir(parents=True, exist_ok=True)
        texts.mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            one = drawn(number)
            one.image.save(pictures / f"{number:04}.{suffix}")
            (texts / f"{number:04}.txt").write_text(one.row(task) + "\n")
            number += 1
    text = "train: images/train\nval: images/val\nnames: [square, disc]\n" if yaml == "" else yaml
    if text is not None:
        (root / "data.yaml").write_text(text + ("kpt_shape: [2, 3]\n" if task is Task.POSE and yaml == "" else ""))
    return root / "data.yaml"


class OnDisk:
    """A fetcher for local datasets."""

    def __init__(self, *, is_private: bool = False) -> None:
        self.is_private = is_private

    def fetch(self, ref, staging, stop, on_event):
        path = Path(ref.path)
        root, entry = (path, None) if path.is_dir() else (path.parent, Path(path.name))
        return Fetched(root=root, entry=entry, is_private=self.is_private)

    def scratch(self):
        raise NotImplementedError


def prepared(
    source: Path,
    folder: Path,
    *,
    task: Task | None = None,
    split: SplitRequest | None = None,
    private: bool = False,
    root: Path | None = None,
    events: list | None = None,
    more: tuple[Path, ...] = (),
) -> PreparedDataset:
    """Prepare the dataset at `source` in the new folder `folder`."""
    datasets = FetchedDatasets(
        OnDisk(is_private=private), ReferenceRules(Roots(root or source.parent), "datasets"), decode=here
    )
    order = DatasetOrder(sources=tuple(str(s) for s in (source, *more)), task=task, split=split)
    return datasets.prepare(order, folder, StopSignal(), (events if events is not None else []).append)
