"""The plan of a run: its validated request, with all settings. `trainer/request/` parses a row into a plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter

from trainer.core import model_catalog
from trainer.core.dataset import SplitRequest, Task
from trainer.core.job import Json, JsonObject
from trainer.core.model import Architecture, ModelRef, OfficialModel, Value
from trainer.core.text import shown_url


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """The complete settings of a training. Every value is valid, but a value can still conflict with the dataset."""

    sources: tuple[str, ...]  # dataset references from the row; at least one
    model: ModelRef
    task: Task | None  # None: the task of the dataset
    epochs: int
    batch: int | float  # images; -1 is AutoBatch, a number below 1 is a share of the GPU memory
    imgsz: int
    # GPU indices within the slot of the run, so (0,) means "the GPU of the slot"; () means the CPU; None: not set
    device: tuple[int, ...] | None
    args: Mapping[str, Value] = field(default_factory=dict)  # other train arguments, with their Ultralytics names
    chosen: tuple[str, ...] = ()  # settings that the service chose, because the row does not set them
    split: SplitRequest | None = None
    exports: tuple[str, ...] = ()
    predictions: bool = False
    warnings: tuple[str, ...] = ()  # one sentence per ignored or replaced setting

    def model_warning(self, task: Task) -> str | None:
        """Return a warning if the task of the dataset differs from the task in the name of the model, else None.

        If the row sets the task, `warnings` already has this warning, so the result is None. Raises BadRequest if the
        model is not published for the task.
        """
        model = self.model
        if self.task or not isinstance(model, OfficialModel | Architecture) or model.task in (None, task):
            return None
        used = model_catalog.resolve_name(model.stem, task, scratch=isinstance(model, Architecture))
        return f"base_model names a {model.task} model, and the task is {task}: {used} is used instead"

    def as_json(self) -> JsonObject:
        """Return the plan as JSON for the training process."""
        data: JsonObject = _JSON.dump_python(self, mode="json")
        return data

    def without_secrets(self) -> TrainPlan:
        """Return the plan without possible credentials in dataset URLs."""
        return replace(self, sources=tuple(map(shown_url, self.sources)))

    def recorded(self) -> JsonObject:
        """Return the plan for `results.plan`. A number and a digest replace the assigned images."""
        plan = self.without_secrets().as_json()
        if self.split and self.split.assigned:
            names = json.dumps(dict(self.split.assigned), sort_keys=True).encode()
            digest = hashlib.sha256(names).hexdigest()
            plan["split"]["assigned"] = f"{len(self.split.assigned)} images (sha256 {digest[:16]})"
        return plan

    @classmethod
    def from_json(cls, data: Json) -> TrainPlan:
        """Return the plan from the output of `as_json`. Raises ValueError for other data."""
        return _JSON.validate_python(data)


_JSON = TypeAdapter(TrainPlan)
