"""The model that a run starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

from trainer.core.dataset import ObjectRef, Task
from trainer.core.job import JsonObject


@dataclass(frozen=True, kw_only=True)
class OfficialModel:
    """A model that Ultralytics publishes; `stem` has no task suffix ("yolo11n"), because the task decides about it."""

    stem: str
    task: Task | None = None  # the one in the name that the row gave ("yolo11n-seg"), or None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that is trained from scratch, for example "yolo11n" for yolo11n.yaml."""

    stem: str
    task: Task | None = None  # as for OfficialModel


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A `.pt` file in MODELS_DIR."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ModelObject:
    """A `.pt` object in the artifacts bucket."""

    ref: ObjectRef


@dataclass(frozen=True, kw_only=True)
class ModelOfRun:
    """The file best.pt of a completed run."""

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
    """Return the model that `model_as_json` wrote. Raise KeyError, TypeError or ValueError for anything else."""
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
