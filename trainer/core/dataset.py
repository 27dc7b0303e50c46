"""What a dataset is: the reference that a row gives, and the folder that a training gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

from trainer.core.job import JsonObject


class Task(StrEnum):
    """What a model learns to do, in Ultralytics' words."""

    DETECT = "detect"
    SEGMENT = "segment"
    CLASSIFY = "classify"
    POSE = "pose"
    OBB = "obb"


@dataclass(frozen=True, kw_only=True)
class DiskRef:
    """A path on this host, absolute or below the dataset root."""

    path: str


@dataclass(frozen=True, kw_only=True)
class ObjectRef:
    """An object, or a folder of objects, in a bucket. `key` has no leading slash."""

    bucket: str
    key: str


@dataclass(frozen=True, kw_only=True)
class HttpRef:
    """Something behind an http(s) URL that is not our own storage."""

    url: str


DatasetRef: TypeAlias = DiskRef | ObjectRef | HttpRef


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """How to split a dataset that has no val split: shares of the images, reproducible by seed."""

    train_ratio: float
    seed: int = 0
    test_ratio: float = 0.0
    assigned: Mapping[str, str] = field(default_factory=dict)  # image id or name → train, val or test; wins over ratios


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something noticed about a dataset. An error stops the run, a warning becomes an event, a note is only shown."""

    level: Literal["error", "warning", "note"]
    code: str  # stable, for programs
    message: str  # one sentence, with what to do
    count: int = 1
    examples: tuple[str, ...] = ()  # up to five


@dataclass(frozen=True, kw_only=True)
class DatasetOrder:
    """What a run needs of its dataset. `sources` holds more than one reference when datasets are merged."""

    run_id: str
    sources: tuple[str, ...]
    task: Task | None = None  # None: found out from the dataset
    split: SplitRequest | None = None
    imgsz: int = 640


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """A private view that can be trained on. For classification `data` is the folder, otherwise the YAML."""

    root: Path
    data: Path
    task: Task
    names: tuple[str, ...]
    images: Mapping[str, int]  # split → number of images
    fingerprint: str  # sha-256 over the content of what is trained on
    findings: tuple[Finding, ...] = ()
    summary: JsonObject = field(default_factory=dict)  # goes into results.dataset
