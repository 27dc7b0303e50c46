"""The result of a format reader: a recognized dataset and its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trainer.core.dataset import SplitRequest, Task
from trainer.datasets.images.header import NOT_READ, Facts

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class Sample(NamedTuple):
    """One image and its labels. Each step of the preparation returns a copy with more fields set.

    A named tuple is copied faster than a frozen dataclass. A dataset can have 100,000 images.
    """

    image: str  # the path of the file
    name: str  # a relative path with `/`, unique in the dataset
    split: str | None  # None: the dataset has no splits yet
    label: str | None = None  # the path of a YOLO label file whose content is exactly `text`, or None
    text: bytes | None = None  # the labels in YOLO format; None if they are not read yet or do not exist
    class_id: int | None = None  # for classification only
    owned: bool = False  # whether the files are in our cache, not in the user's folder
    key: str = ""  # the id of the image in its annotation file
    facts: Facts = NOT_READ  # set by the checks
    place: str = ""  # the path of the image relative to the view; set when the view is built


@dataclass(frozen=True, kw_only=True)
class RecognizedDataset:
    """The samples and classes of one source whose format was recognized.

    `ids[i]` is the number of class `names[i]` in label files. If `ids` is None, classes are numbered from 0. `names` is
    None for a dataset without class names, which has at least `count` classes. `split` is the split that the dataset
    requests, or None.
    """

    samples: list[Sample]
    names: tuple[str, ...] | None
    ids: tuple[int, ...] | None = None
    count: int = 0
    task: Task | None = None
    kpt_shape: tuple[int, int] | None = None
    flip_idx: tuple[int, ...] | None = None
    split: SplitRequest | None = None
