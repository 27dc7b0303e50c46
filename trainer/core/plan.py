"""A queued request, typed and complete: `TrainPlan.parse` is the only reader of a row's `configuration`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TypeAlias

from trainer.core import model_catalog
from trainer.core.dataset import ObjectRef, SplitRequest, Task, shown_url
from trainer.core.job import JsonObject, RunRequest
from trainer.request.arguments import Value


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
    # GPUs asked for, counted within the run's slot, so (0,) is "the GPU of the slot"; () for CPU; None: not said
    device: tuple[int, ...] | None
    args: Mapping[str, Value] = field(default_factory=dict)  # further train arguments, by Ultralytics' names
    chosen: tuple[str, ...] = ()  # settings that the row left open and the service chose
    split: SplitRequest | None = None
    exports: tuple[str, ...] = ()
    predictions: bool = False
    warnings: tuple[str, ...] = ()  # what was not understood or was replaced, one sentence each

    @classmethod
    def parse(
        cls,
        request: RunRequest,
        *,
        exports_available: frozenset[str] = frozenset({"torchscript"}),
        artifacts_bucket: str = "training-artifacts",
        workers: int | None = None,
    ) -> TrainPlan:
        """Read a request. Raises `BadRequest` that lists every wrong value with field, value and rule.

        `workers` is the number of loader processes where the row is silent; None leaves it to Ultralytics.
        """
        from trainer.request.parse import read_plan  # the reader needs the types above

        return read_plan(request, exports_available, artifacts_bucket, workers)

    def model_warning(self, task: Task) -> str | None:
        """What to tell the user when the dataset's task is not the one that the model's name spelled, or None.

        None as well when the row named the task: then `warnings` says it already. Raises BadRequest when the model
        is not published for the task.
        """
        model = self.model
        if self.task or not isinstance(model, OfficialModel | Architecture) or model.task in (None, task):
            return None
        used = model_catalog.resolve_name(model.stem, task, scratch=isinstance(model, Architecture))
        return f"base_model names a {model.task} model, and the task is {task}: {used} is used instead"

    def as_json(self) -> JsonObject:
        """The plan as it is sent to the child."""
        return {
            "sources": list(self.sources),
            "model": {"kind": _KINDS[type(self.model)], **asdict(self.model)},
            "task": self.task,
            "epochs": self.epochs,
            "batch": self.batch,
            "imgsz": self.imgsz,
            "device": None if self.device is None else list(self.device),
            "args": dict(self.args),
            "chosen": list(self.chosen),
            "split": None if self.split is None else asdict(self.split),
            "exports": list(self.exports),
            "predictions": self.predictions,
            "warnings": list(self.warnings),
        }

    def without_secrets(self) -> TrainPlan:
        """The plan for other eyes: the URLs of its dataset lose what may be a credential."""
        return replace(self, sources=tuple(map(shown_url, self.sources)))

    def recorded(self) -> JsonObject:
        """The plan as `results.plan` keeps it: of a split that names each image, their number and a digest."""
        plan = self.without_secrets().as_json()
        if self.split and self.split.assigned:
            names = json.dumps(dict(self.split.assigned), sort_keys=True).encode()
            digest = hashlib.sha256(names).hexdigest()
            plan["split"]["assigned"] = f"{len(self.split.assigned)} images (sha256 {digest[:16]})"
        return plan

    @classmethod
    def from_json(cls, data: JsonObject) -> TrainPlan:
        """The inverse of `as_json`. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            sources=tuple(data["sources"]),
            model=_model_from_json(data["model"]),
            task=None if data["task"] is None else Task(data["task"]),
            epochs=data["epochs"],
            batch=data["batch"],
            imgsz=data["imgsz"],
            device=None if data["device"] is None else tuple(data["device"]),
            args=dict(data["args"]),
            chosen=tuple(data["chosen"]),
            split=None if data["split"] is None else SplitRequest(**data["split"]),
            exports=tuple(data["exports"]),
            predictions=data["predictions"],
            warnings=tuple(data["warnings"]),
        )


_KINDS: Mapping[type[ModelRef], str] = {
    OfficialModel: "official",
    Architecture: "architecture",
    ModelFile: "file",
    ModelObject: "object",
    ModelOfRun: "run",
}


def _model_from_json(data: JsonObject) -> ModelRef:
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
