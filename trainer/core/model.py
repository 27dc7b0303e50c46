"""The initial model of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from trainer.core.dataset import ObjectRef, Task


@dataclass(frozen=True, kw_only=True)
class OfficialModel:
    """A model that Ultralytics publishes. `stem` has no task suffix ("yolo11n"); the task selects the suffix."""

    stem: str
    task: Task | None = None  # the task in the name that the row uses ("yolo11n-seg"), or None
    kind: Literal["official"] = "official"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that is trained from scratch, for example "yolo11n" for yolo11n.yaml."""

    stem: str
    task: Task | None = None  # see OfficialModel
    kind: Literal["architecture"] = "architecture"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A `.pt` file in MODELS_DIR."""

    name: str
    kind: Literal["file"] = "file"


@dataclass(frozen=True, kw_only=True)
class ModelObject:
    """A `.pt` object in the artifacts bucket."""

    ref: ObjectRef
    kind: Literal["object"] = "object"


@dataclass(frozen=True, kw_only=True)
class ModelOfRun:
    """The file best.pt of a completed run."""

    run_id: str
    kind: Literal["run"] = "run"


# the value of a train argument
Value: TypeAlias = bool | int | float | str | list[int | float | str]
ModelRef: TypeAlias = OfficialModel | Architecture | ModelFile | ModelObject | ModelOfRun
