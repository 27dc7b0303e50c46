"""From a row to a `TrainPlan`: every value is read by its rule, and everything wrong is reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from trainer.core import model_catalog
from trainer.core.dataset import Task
from trainer.core.errors import BadRequest
from trainer.core.job import Json, RunRequest
from trainer.core.model import Architecture, ModelRef, OfficialModel, Value
from trainer.core.plan import TrainPlan
from trainer.core.text import shown
from trainer.request import arguments
from trainer.request.arguments import Rule
from trainer.request.configuration import Configuration, is_left_open, squeezed
from trainer.request.device import read_device
from trainer.request.exports import read_exports
from trainer.request.model_reference import read_model
from trainer.request.split import read_split

T = TypeVar("T")

_DEFAULT_MODEL = OfficialModel(stem="yolov8s")
_TASK_PREFIXES = {
    "det": Task.DETECT, "seg": Task.SEGMENT, "cls": Task.CLASSIFY, "class": Task.CLASSIFY, "pose": Task.POSE,
    "keypoint": Task.POSE, "obb": Task.OBB, "orient": Task.OBB,
}  # fmt: skip
_SOURCE_RULE = "a path, a storage: reference or a URL, or a list of up to 64 of these"
_AUGMENTATIONS = frozenset(
    {
        *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr"),
        *("mosaic", "mixup", "copy_paste"),
    },
)
_REQUIRED = arguments.number(0, 100_000)
_MOST_LINES = 50  # of problems or warnings; a person reads no more


def plan_of(
    request: RunRequest,
    *,
    exports_available: frozenset[str] = frozenset({"torchscript"}),
    artifacts_bucket: str = "training-artifacts",
    workers: int | None = None,
) -> TrainPlan:
    """Return the plan of a request. Raise `BadRequest` with every problem as field, value and rule.

    `workers` is the number of loader processes where the row names none; None leaves it to Ultralytics.
    """
    if request.unreadable:
        raise BadRequest([request.unreadable])
    reading = _Reading(Configuration.read(request.configuration), workers)
    plan = reading.plan(request, exports_available, artifacts_bucket)
    if reading.found.problems:
        raise BadRequest(_bounded(reading.found.problems))
    return plan


@dataclass
class _Reading:
    found: Configuration
    workers: int | None
    chosen: list[str] = field(default_factory=list)  # what the row left open

    def plan(self, request: RunRequest, exports_available: frozenset[str], artifacts_bucket: str) -> TrainPlan:
        task = self._task()
        plan = TrainPlan(
            sources=self._sources((request.data_yaml or "").strip()),
            model=self._model((request.base_model or "").strip(), artifacts_bucket),
            task=task,
            epochs=self._or_chosen("epochs", arguments.EPOCHS, 100),
            batch=self._or_chosen("batch", arguments.BATCH, 16),
            imgsz=self._imgsz(),
            device=read_device(self.found),
            split=read_split(self.found),
            exports=read_exports(self.found, exports_available),
            predictions=self.found.value("predictions", arguments.FLAG, False),
            args=self._arguments(),
            chosen=tuple(self.chosen),
        )
        self._fit(plan.model, task)
        self._rest(plan.args)
        return replace(plan, warnings=tuple(_bounded(self.found.warnings)))

    def _or_chosen(self, name: str, rule: Rule[T], default: T) -> T:
        if name not in self.found.settings:
            self.chosen.append(name)
        return self.found.value(name, rule, default)

    def _sources(self, own: str) -> tuple[str, ...]:
        """The row's data_yaml; the configuration's when the row has none, or when its list holds the row's too."""
        given = self.found.take("data")
        listed = _texts(given.value) if given else []
        if given and own and own not in listed:
            self.found.warnings.append(f"{given.spelling} was ignored: the row's data_yaml is another")
        elif given and not listed:
            self.found.wrong(given, _SOURCE_RULE)
        elif given:
            return tuple(listed)
        if own and _texts(own):
            return (own,)
        if own:
            self.found.problems.append(f"data_yaml = {shown(own)}: must be {_SOURCE_RULE}")
        elif not given:
            self.found.problems.append("data_yaml: missing; name the dataset's YAML, folder, archive or storage: path")
        return ()

    def _model(self, own: str, artifacts_bucket: str) -> ModelRef:
        given = self.found.take("base_model")
        pretrained = self.found.settings.get("pretrained")
        scratch = not self.found.value("pretrained", Rule(arguments.REFUSED["pretrained"], arguments.FLAG.read), True)
        name = own or given.value if given else own
        if given and own and (not isinstance(given.value, str) or squeezed(given.value) != squeezed(own)):
            self.found.warnings.append(f"{given.spelling} was ignored: the row's base_model is another")
        if given and not isinstance(name, str):
            self.found.wrong(given, "a model's name")
            return _DEFAULT_MODEL
        if is_left_open(name):
            self.chosen.append("base_model")
            model: ModelRef = _DEFAULT_MODEL
        else:
            try:
                model = read_model(name, artifacts_bucket)
            except BadRequest as refused:
                self.found.problems.extend(refused.problems)
                return _DEFAULT_MODEL
        untrained = _from_scratch(model) if scratch else model
        if pretrained and untrained is None:
            self.found.wrong(pretrained, "true for this base_model: there is no network of it without weights")
        return untrained or model

    def _task(self) -> Task | None:
        given = self.found.take("task")
        if given is None or is_left_open(given.value):
            return None
        word = re.sub(r"[^a-z]", "", given.value.lower()) if isinstance(given.value, str) else ""
        word = re.sub(r"^(object|instance|image|pose(?=keypoint))", "", word)
        for prefix, task in _TASK_PREFIXES.items():
            if word.startswith(prefix):
                return task
        self.found.wrong(given, f"one of {', '.join(Task)}")
        return None

    def _fit(self, model: ModelRef, task: Task | None) -> None:
        """A published model has to exist for the task that the row names."""
        if task is None or not isinstance(model, OfficialModel | Architecture):
            return
        scratch = isinstance(model, Architecture)
        try:
            used = model_catalog.resolve_name(model.stem, task, scratch=scratch)
        except BadRequest as refused:
            self.found.problems.extend(refused.problems)
            return
        if model.task not in (None, task):
            self.found.warnings.append(f"base_model names a {model.task} model, and the task is {task}: {used} is used")

    def _imgsz(self) -> int:
        imgsz = self._or_chosen("imgsz", arguments.IMGSZ, 640)
        if imgsz % 32:
            used = -(-imgsz // 32) * 32
            self.found.warnings.append(f"imgsz = {imgsz} is no multiple of 32; Ultralytics trains at {used}")
        return imgsz

    def _arguments(self) -> dict[str, Value]:
        """The train arguments that the row sets, and our choice of optimizer and learning rate where it is silent."""
        args: dict[str, Value] = {}
        optimizer = self.found.settings.get("optimizer")
        # "auto" is one of Ultralytics' own and stays
        if optimizer and is_left_open(optimizer.value) and squeezed(optimizer.value) != "auto":
            self.found.take("optimizer")
        for name in [name for name in self.found.settings if name in arguments.ALLOWED]:
            value = self.found.value(name, arguments.ALLOWED[name], None)
            if value is not None:
                args[name] = value
        for name, default in (("optimizer", "Adam"), ("lr0", 0.001)):
            if name not in args and not (name == "lr0" and args["optimizer"] == "auto"):
                args[name] = default
                self.chosen.append(name)
        if self.workers is not None and "workers" not in args:
            args["workers"] = self.workers
            self.chosen.append("workers")
        if args["optimizer"] == "auto" and "lr0" in args:
            self.found.warnings.append("lr0 has no effect: optimizer = auto chooses the learning rate")
        return args

    def _rest(self, args: Mapping[str, Value]) -> None:
        """What is left is served elsewhere, refused with a reason, or without effect."""
        preset = self.found.take("preset")
        if preset and _AUGMENTATIONS.isdisjoint(args) and preset.value not in ("none", "custom"):
            self.found.warnings.append(f"{preset.spelling} had no effect: send the augmentation's values, not its name")
        strategy = self.found.take("optimization_strategy")
        if strategy and strategy.value == "bayesian":
            self.found.warnings.append("the Bayesian search was not run: one training with the given values was")
        for name, given in self.found.settings.items():
            if name in arguments.REFUSED and not _is_harmless(name, given.value):
                self.found.problems.append(f"{given.spelling}: may not be set; {arguments.REFUSED[name]}")
            elif name in arguments.IGNORED:
                self.found.warnings.append(f"{given.spelling} was ignored: {arguments.IGNORED[name]}")
            elif name == "requires" and not _is_requirement(given.value):
                self.found.wrong(given, 'an object with numbers for gpus and gpu_memory_gb, like {"gpu_memory_gb": 16}')


def _bounded(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _MOST_LINES else [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more"]


def _is_harmless(name: str, value: Json) -> bool:
    """Settings that would only be refused for what they could say: resume = false, mode = train."""
    return value is False or (name == "mode" and value == "train")


def _is_requirement(value: Json) -> bool:
    """Whether the queue, which reads it before any worker does, understood it."""
    try:
        return isinstance(value, Mapping) and all(
            key in {"gpus", "gpu_memory_gb"} and _REQUIRED.read(item) >= 0 for key, item in value.items()
        )
    except ValueError:
        return False


def _from_scratch(model: ModelRef) -> ModelRef | None:
    """`pretrained: false`: the same network without its weights, or None."""
    if not isinstance(model, OfficialModel):
        return model if isinstance(model, Architecture) else None
    match = model_catalog.find_architecture(model.stem)
    return Architecture(stem=match.stem, task=model.task) if match else None


def _texts(value: Json) -> list[str]:
    """The references in a value, none when any of them is no usable text."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or len(texts) > 64:
        return []
    usable = [text.strip() for text in texts if isinstance(text, str) and text.strip() and text.strip().isprintable()]
    return usable if len(usable) == len(texts) and all(len(text) <= 4096 for text in usable) else []
