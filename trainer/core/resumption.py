"""The decision whether a later attempt resumes from a checkpoint, or starts over because the row changed.

Each checkpoint records the `Setup` of its training. `decide` compares it with the setup of the current row:

    no relevant change                             resume
    settings that a resumed training can change    resume with the new settings
    other settings                                 start over from the best weights
    another model, task, dataset or class names    start over from the base model of the row
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias, assert_never

from pydantic import ConfigDict, TypeAdapter, ValidationError

from trainer.core.dataset import PreparedDataset
from trainer.core.job import Json, JsonObject
from trainer.core.json_text import storable
from trainer.core.model import Architecture, ModelFile, ModelObject, ModelOfRun, ModelRef, OfficialModel, Value
from trainer.core.plan import TrainPlan

# defaults of Ultralytics for the arguments that a row can set
DEFAULTS: Mapping[str, Value | None] = {
    **dict.fromkeys(("cls_remap", "verbose", "deterministic", "overlap_mask", "val", "plots", "save", "amp"), True),
    **dict.fromkeys(("single_cls", "rect", "cos_lr", "augment", "agnostic_nms", "visualize", "cache"), False),
    **dict.fromkeys(("save_txt", "save_conf"), False),
    **dict.fromkeys(("channels_last", "nms", "conf", "time", "freeze", "classes"), None),
    **dict.fromkeys(("multi_scale", "dropout", "cls_pw", "perspective", "flipud", "bgr", "mixup", "cutmix"), 0.0),
    **dict.fromkeys(("copy_paste", "degrees", "shear"), 0.0),
    "box": 7.5, "cls": 0.5, "dfl": 1.5, "pose": 12.0, "kobj": 1.0, "rle": 1.0, "angle": 1.0, "iou": 0.7,
    "optimizer": "auto", "lr0": 0.01, "lrf": 0.01, "momentum": 0.937, "weight_decay": 0.0005, "nbs": 64,
    "warmup_epochs": 3.0, "warmup_momentum": 0.8, "warmup_bias_lr": 0.1, "close_mosaic": 10, "patience": 100,
    "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "translate": 0.1, "scale": 0.5, "fliplr": 0.5, "mosaic": 1.0,
    "erasing": 0.4, "copy_paste_mode": "flip", "auto_augment": "randaugment", "fraction": 1.0, "seed": 0,
    "save_period": -1, "mask_ratio": 4, "max_det": 300,
}  # fmt: skip

# Settings that a resumed training can change (training/yolo/train_arguments.py). Ultralytics accepts new values for the
# settings on the first line, but takes `channels_last` and `epochs` from the checkpoint. This service changes both of
# them, too, and recomputes the learning rate schedule. The settings on the last line affect only the validation.
CHANGEABLE = frozenset(
    {
        *("imgsz", "batch", "close_mosaic", "save_period", "cache", "patience", "time", "freeze", "val", "plots"),
        *("channels_last", "epochs"),
        *("conf", "iou", "max_det", "agnostic_nms", "augment", "nms", "save_txt", "save_conf", "visualize", "verbose"),
    },
)
# settings that affect the measurement of the fitness of an epoch
_MEASURES = frozenset({"imgsz", "val", "conf", "iou", "max_det", "agnostic_nms", "augment", "nms"})
_LONGEST = 60  # characters of a value in a message


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The identity of a training: two attempts with the same setup are the same training."""

    model: str
    task: str
    names: tuple[str, ...]  # class names
    sources: tuple[str, ...]  # dataset references, without secrets
    split: str
    fingerprint: str  # fingerprint of the content of the dataset
    settings: Mapping[str, Value | None]  # every training argument that a row can set
    started_from: str | None = None  # initial weights from an earlier training of the run, or None
    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def of(cls, plan: TrainPlan, dataset: PreparedDataset) -> Setup:
        """Return the setup of `plan` on `dataset`."""
        chosen = {"epochs": plan.epochs, "batch": plan.batch, "imgsz": plan.imgsz}
        settings = {**DEFAULTS, **plan.args, **chosen}
        settings.pop("workers", None)  # the number of loader processes depends on the host
        split = json.dumps(asdict(plan.split), sort_keys=True) if plan.split else ""
        return cls(
            model=_model_name(plan.model),
            task=dataset.task.value,
            names=tuple(map(storable, dataset.names)),  # training/wire.py replaces the same characters
            sources=tuple(map(storable, plan.without_secrets().sources)),
            split=hashlib.sha256(split.encode("utf-8", "surrogatepass")).hexdigest() if split else "",
            fingerprint=dataset.fingerprint,
            settings=settings,
        )

    def as_json(self) -> JsonObject:
        data: JsonObject = _JSON.dump_python(self, mode="json")
        return data

    @classmethod
    def from_json(cls, data: Json) -> Setup | None:
        """Return the setup from the output of `as_json`, or None for other data, for example from another version."""
        try:
            return _JSON.validate_python(data)
        except ValidationError:
            return None


_JSON = TypeAdapter(Setup)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Resume the training. `changes` are the settings with new values in the row, each as "name old → new"."""

    changes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StartOver:
    """Start at epoch 1 because of `changes`, from the best weights of the checkpoint or from the base model."""

    from_best: bool
    changes: tuple[str, ...]


Decision: TypeAlias = Resume | StartOver


def are_comparable(before: Setup | None, now: Setup | None) -> bool:
    """Return whether the fitness values of both trainings are comparable.

    If not, only the epochs after the resume can become the best epoch. For example, a fitness of 0.7 on wrong labels is
    not better than 0.6 on corrected labels. Trainings without a recorded setup count as comparable.
    """
    if before is None or now is None:
        return True
    return before.fingerprint == now.fingerprint and _MEASURES.isdisjoint(dict(_settings(before, now)))


def decide(before: Setup | None, now: Setup, *, epoch: int, complete: bool) -> Decision:
    """Decide how to use a checkpoint. `before` is the recorded setup, `now` the setup of the row.

    `epoch` is the number of finished epochs. `complete` says that only the final evaluation is missing. A training
    always resumes from a checkpoint without a recorded setup.
    """
    if before is None:
        return Resume()
    if others := tuple(_other_training(before, now)):
        return StartOver(from_best=False, changes=others)
    settings = dict(_settings(before, now))
    content = () if before.fingerprint == now.fingerprint else ("the content of the dataset",)
    if fixed := tuple(change for name, change in settings.items() if name not in CHANGEABLE):
        return StartOver(from_best=True, changes=fixed)
    changes = (*settings.values(), *content)
    has_none_left = now.settings.get("time") is None and _number(now.settings.get("epochs")) <= epoch
    if changes and (complete or has_none_left):
        return StartOver(from_best=True, changes=changes)
    return Resume(changes=changes)


def _other_training(before: Setup, now: Setup) -> Iterator[str]:
    if before.model != now.model:
        yield f"base_model {_shown(before.model)} → {_shown(now.model)}"
    if before.task != now.task:
        yield f"task {_shown(before.task)} → {_shown(now.task)}"
    if before.names != now.names:
        yield "the class names"
    if before.fingerprint == now.fingerprint:
        return  # the same images and labels in the same splits; only the references changed
    if before.sources != now.sources:
        yield f"data_yaml {_shown(', '.join(before.sources))} → {_shown(', '.join(now.sources))}"
    if before.split != now.split:
        yield "split"


def _settings(before: Setup, now: Setup) -> Iterator[tuple[str, str]]:
    for name in sorted({*before.settings, *now.settings}):
        old, new = (settings.get(name, DEFAULTS.get(name)) for settings in (before.settings, now.settings))
        has_budget = name == "epochs" and now.settings.get("time") is not None
        if old != new and not has_budget:  # with `time`, the number of epochs has no effect
            yield name, f"{name} {_shown(old)} → {_shown(new)}"


def _number(value: Json) -> float:
    return value if isinstance(value, int | float) else 0.0


def _shown(value: Json) -> str:
    text = value if isinstance(value, str) else "default" if value is None else json.dumps(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _model_name(model: ModelRef) -> str:
    # the result does not contain the task that the row names, because only the task of the dataset matters
    match model:
        case OfficialModel():
            return model.stem
        case Architecture():
            return f"{model.stem}.yaml"
        case ModelFile():
            return model.name
        case ModelObject():
            return f"{model.ref.bucket}/{model.ref.key}"
        case ModelOfRun():
            return f"run {model.run_id}"
        case _:
            assert_never(model)
