"""Datasets: references in a row, and prepared folders for a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

from trainer.core.errors import BadRequest
from trainer.core.job import JsonObject
from trainer.core.stored_pixels import FOLDER


class Task(StrEnum):
    """The task of a model, with the name that Ultralytics uses."""

    DETECT = "detect"
    SEGMENT = "segment"
    CLASSIFY = "classify"
    POSE = "pose"
    OBB = "obb"


@dataclass(frozen=True, kw_only=True)
class DiskRef:
    """A path on this host, absolute or relative to the dataset root."""

    path: str


@dataclass(frozen=True, kw_only=True)
class ObjectRef:
    """An object, or a folder of objects, in a bucket.

    `key` has no leading slash. An empty key means the whole bucket. `store` names the store (`supabase`, `local`).
    An empty `store` means the configured store of the service.
    """

    bucket: str
    key: str
    store: str = ""

    def in_store(self, name: str) -> ObjectRef:
        """Return this reference with `name` as its store. Raises BadRequest for a reference to another store."""
        if self.store not in ("", name):
            raise BadRequest(f"object {self.key!r} is in the store {self.store!r}, not in {name!r}")
        return replace(self, store=name)


@dataclass(frozen=True, kw_only=True)
class HttpRef:
    """A file at an http(s) URL outside of the configured store."""

    url: str


DatasetRef: TypeAlias = DiskRef | ObjectRef | HttpRef


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """The requested split of a dataset that has no val split. The same seed gives the same split."""

    train_ratio: float
    seed: int = 0
    test_ratio: float = 0.0
    assigned: Mapping[str, str] = field(default_factory=dict)  # image id or name → split; has priority over ratios


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding about a dataset. An error fails the run. A warning becomes an event. A note is only printed."""

    level: Literal["error", "warning", "note"]
    code: str  # stable, so programs can use it; the docs list all codes
    message: str  # one sentence, with the fix
    count: int = 1
    examples: tuple[str, ...] = ()  # up to five


@dataclass(frozen=True, kw_only=True)
class DatasetOrder:
    """The dataset requirements of a run. If datasets are merged, `sources` has several references.

    `owner` is the user who created the run. Results of one owner's runs are never reused for another owner.
    """

    sources: tuple[str, ...]
    task: Task | None = None  # None: detected from the dataset
    split: SplitRequest | None = None
    imgsz: int = 640
    owner: str | None = None  # None: the run was inserted by the service itself


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """A private view of a dataset, ready for training. `data` is data.yaml, or `root` for classification.

    The links in the view lead only to files in the folders and files `readable`, which are real paths.
    """

    root: Path
    data: Path
    task: Task
    names: tuple[str, ...]
    images: Mapping[str, int]  # split → number of images
    fingerprint: str  # SHA-256 of the training data
    readable: tuple[Path, ...] = ()
    findings: tuple[Finding, ...] = ()
    summary: JsonObject = field(default_factory=dict)  # published as `results.dataset`

    @property
    def kept_pixels(self) -> Path:
        """The folder with the stored pixels of earlier trainings (core/stored_pixels.py). It can be missing."""
        return self.root.parent / FOLDER
