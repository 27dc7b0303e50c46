"""A queued request, typed and complete: `TrainPlan.parse` is the only reader of a row's `configuration`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from trainer.core.dataset import ObjectRef, SplitRequest, Task
from trainer.core.job import JsonObject, RunRequest


@dataclass(frozen=True, kw_only=True)
class OfficialModel:
    """A model that Ultralytics publishes; `stem` without task suffix ("yolo11n"), the suffix follows the task."""

    stem: str


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network trained from scratch, for example "yolo11n" for yolo11n.yaml; the suffix follows the task."""

    stem: str


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A `.pt` file below MODELS_DIR."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ModelObject:
    """A `.pt` object in the artifacts bucket."""

    ref: ObjectRef


@dataclass(frozen=True, kw_only=True)
class ModelOfRun:
    """best.pt of a completed run."""

    run_id: str


ModelRef: TypeAlias = OfficialModel | Architecture | ModelFile | ModelObject | ModelOfRun


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What will be trained and how. Every value is valid by itself; only the dataset can still disagree."""

    sources: tuple[str, ...]  # dataset references as given, at least one
    model: ModelRef
    task: Task | None  # None: follows from the dataset
    epochs: int
    batch: int | float  # images; -1: AutoBatch; 0…1: share of the GPU memory
    imgsz: int
    device: tuple[int, ...] | None  # GPU indices asked for; () for CPU; None: whatever the slot has
    args: Mapping[str, bool | int | float | str | list[int]] = field(default_factory=dict)  # further train arguments
    split: SplitRequest | None = None
    exports: tuple[str, ...] = ()
    predictions: bool = False
    warnings: tuple[str, ...] = ()  # what was not understood or was replaced, one sentence each

    @classmethod
    def parse(cls, request: RunRequest) -> TrainPlan:
        """Read a request. Raises `BadRequest` that lists every wrong value with field, value and rule."""
        raise NotImplementedError

    def as_json(self) -> JsonObject:
        """The plan as it is recorded in `results.plan` and sent to the child."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, data: JsonObject) -> TrainPlan:
        """The inverse of `as_json`."""
        raise NotImplementedError
