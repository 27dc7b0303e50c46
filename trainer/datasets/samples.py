"""What the recognizers of all formats agree on: the samples, names and findings of a dataset, before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from trainer.core.dataset import Finding, SplitRequest, Task

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
Admit: TypeAlias = Callable[[Path], Path]
"""The real path of a file or folder that may be read; raises `DatasetError` for one that may not."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its labels. `name` is unique in its dataset, relative, with `/`; `split` None: not decided yet.

    Labels are the YOLO file `label`, or `text` in the same format where they were converted, or `class_id` for
    classification. `owned`: the image is in our own cache, not in the user's folder. `key` is what an annotations file
    calls the image.
    """

    image: str
    name: str
    split: str | None
    label: str | None = None
    text: bytes | None = None
    class_id: int | None = None
    owned: bool = False
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A recognized dataset. `ids[i]` is the number by which label files call `names[i]`; None: count from 0.

    `names` None: nothing names the classes, of which there are at least `count`. `split` is what the dataset itself says about splitting.
    """

    samples: list[Sample]
    names: tuple[str, ...] | None
    ids: tuple[int, ...] | None = None
    count: int = 0
    task: Task | None = None
    kpt_shape: tuple[int, int] | None = None
    flip_idx: tuple[int, ...] | None = None
    findings: tuple[Finding, ...] = ()
    split: SplitRequest | None = None
