"""Which model a run starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

from trainer.core.dataset import ObjectRef, Task
from trainer.core.job import JsonObject


@dataclass(frozen=True, kw_only=True)
class OfficialModel:
    """A model that Ultralytics publishes; `stem` without task suffix ("yolo11n"), the suffix follows the task."""

    stem: str
    task: Task | None = None  # the one that the row's spelling named ("yolo11n-seg"), None when it named none


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network trained from scratch, for example "yolo11n" for yolo11n.yaml; the suffix follows the task."""

    stem: str
    task: Task | None = None  # as for OfficialModel


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


# the value of a train argument
Value: TypeAlias = bool | int | float | str | list[int | float | str]
ModelRef: TypeAlias = OfficialModel | Architecture | ModelFile | ModelObject | ModelOfRun


def model_as_json(model: ModelRef) -> JsonObject:
    """Return the model as it is sent to the training process."""
    return {"kind": _KINDS[type(model)], **asdict(model)}


_KINDS: Mapping[type[ModelRef], str] = {
    OfficialModel: "official",
    Architecture: "architecture",
    ModelFile: "file",
    ModelObject: "object",
    ModelOfRun: "run",
}


def model_from_json(data: JsonObject) -> ModelRef:
    """Return the inverse of `model_as_json`. Raise KeyError, TypeError or ValueError for anything else."""
    fields = {key: value for key, value in data.items() if key != "kind"}
    match data["kind"]:
        case "official":
            return OfficialModel(stem=fields["stem"], task=_task_or_none(fields["task"]))
        case "architecture":
            return Architecture(stem=fields["stem"], task=_task_or_none(fields["task"]))
        case "file":
            return ModelFile(**fields)
        case "object":
            return ModelObject(ref=ObjectRef(**fields["ref"]))
        case "run":
            return ModelOfRun(**fields)
        case kind:
            raise ValueError(f"unknown kind of model: {kind}")


def _task_or_none(word: str | None) -> Task | None:
    return None if word is None else Task(word)
