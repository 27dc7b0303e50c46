"""Convert a row to a `TrainPlan`. All problems are reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError

from trainer.core import model_catalog
from trainer.core.errors import BadRequest
from trainer.core.export_formats import PACKAGES, UNSUPPORTED
from trainer.core.job import RunRequest
from trainer.core.model import Architecture, ModelRef, OfficialModel, Value
from trainer.core.plan import TrainPlan
from trainer.core.text import shown
from trainer.request.configuration import ARGUMENTS, RunConfiguration, references
from trainer.request.fields import rule_of
from trainer.request.model_reference import read_model
from trainer.request.train_arguments import IGNORED, REFUSED
from trainer.request.unnest import Given, Unnested, squeezed

_AUGMENTATIONS = frozenset(
    {
        *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr"),
        *("mosaic", "mixup", "copy_paste"),
    },
)
_MOST_LINES = 50  # limit of the problems, and of the warnings, in a message


def plan_of(
    request: RunRequest,
    *,
    exports_available: frozenset[str] = frozenset({"torchscript"}),
    artifacts_bucket: str = "training-artifacts",
    workers: int | None = None,
) -> TrainPlan:
    """Return the plan of a request. Raise `BadRequest` with every problem as field, value and rule.

    `workers` is the default number of loader processes; with None, Ultralytics chooses the number.
    """
    if request.unreadable:
        raise BadRequest([request.unreadable])
    found = Unnested.of(request.configuration)
    _add_columns(found, request)
    _drop_unused(found)
    reading = _Reading(found, _validated(found))
    plan = reading.plan(exports_available, artifacts_bucket, workers)
    if found.problems:
        raise BadRequest(_bounded(found.problems))
    return plan


def _add_columns(found: Unnested, request: RunRequest) -> None:
    """Add the columns `data_yaml` and `base_model` of the row.

    A column has priority over the configuration, except over a list of datasets that includes `data_yaml`.
    """
    data, model = (request.data_yaml or "").strip(), (request.base_model or "").strip()
    listed, named = found.settings.get("data"), found.settings.get("base_model")
    if data and not (listed and data in _references(listed.value)):
        if listed:
            found.warnings.append(f"{listed.spelling} was ignored: the data_yaml of the row is different")
        found.settings["data"] = Given("data_yaml", data)
    elif not listed:
        found.problems.append(
            "data_yaml: the dataset is missing. Name the YAML file, folder or archive of the dataset, or storage:BUCKET/PATH"
        )
    if model:
        if named and (not isinstance(named.value, str) or squeezed(named.value) != squeezed(model)):
            found.warnings.append(f"{named.spelling} was ignored: the base_model of the row is different")
        found.settings["base_model"] = Given("base_model", model)


def _references(value: object) -> list[str]:
    try:
        return references(value)
    except ValueError:
        return []


def _drop_unused(found: Unnested) -> None:
    """Remove settings that request the default, have no effect, or are not allowed."""
    for name in ("base_model", "task", "device", "optimizer"):
        given = found.settings.get(name)
        value = given.value.strip().lower() if given and isinstance(given.value, str) else ""
        if value in {"none", "null", "default"} or (value == "auto" and name != "optimizer"):
            del found.settings[name]
    split = found.settings.get("split")
    if split and isinstance(split.value, str):  # Ultralytics' own `split` names the split to evaluate
        del found.settings["split"]
        if squeezed(split.value) != "val":
            found.warnings.append(f"{split} was ignored: val and test are both evaluated")
    for name in [name for name in found.settings if name in REFUSED or name in IGNORED]:
        given = found.settings.pop(name)
        if name in IGNORED:
            found.warnings.append(f"{given.spelling} was ignored: {IGNORED[name]}")
        elif given.value is not False and (name, given.value) != ("mode", "train"):
            found.problems.append(f"{given.spelling}: this setting is not allowed; {REFUSED[name]}")


def _validated(found: Unnested) -> RunConfiguration:
    """Return the configuration with the valid settings. Each invalid setting becomes a problem."""
    values = {name: given.value for name, given in found.settings.items()}
    try:
        return RunConfiguration.model_validate(values)
    except ValidationError as invalid:
        wrong = {error["loc"][0] for error in invalid.errors(include_url=False, include_input=False)}
    for name in [name for name in values if name in wrong]:
        found.problems.append(f"{found.settings[name]}: must be {rule_of(RunConfiguration.model_fields[name])}")
    return RunConfiguration.model_validate({name: value for name, value in values.items() if name not in wrong})


@dataclass
class _Reading:
    """Builds the plan, and checks the settings that depend on each other. Problems and warnings go to `found`."""

    found: Unnested
    configuration: RunConfiguration

    def plan(self, exports_available: frozenset[str], artifacts_bucket: str, workers: int | None) -> TrainPlan:
        config = self.configuration
        args = self._arguments(workers)
        model = self._model(artifacts_bucket)
        self._check_task(model)
        self._check_exports(exports_available)
        self.found.warnings.extend(self._without_effect(args))
        return TrainPlan(
            sources=tuple(config.data or ()),
            model=model,
            task=config.task,
            epochs=config.epochs,
            batch=config.batch,
            imgsz=config.imgsz,
            device=self._device(),
            split=config.split.request(config.split_seed) if config.split else None,
            exports=tuple(config.exports),
            predictions=config.predictions,
            args=args,
            chosen=tuple(self._chosen(args)),
            warnings=tuple(_bounded(self.found.warnings)),
        )

    def _arguments(self, workers: int | None) -> dict[str, Value]:
        """Return the train arguments of the row, and the defaults of the service."""
        config = self.configuration
        args: dict[str, Value] = {name: getattr(config, name) for name in ARGUMENTS if name in config.model_fields_set}
        args.setdefault("optimizer", config.optimizer)
        if args["optimizer"] != "auto":
            args.setdefault("lr0", config.lr0)
        if workers is not None:
            args.setdefault("workers", workers)
        return args

    def _chosen(self, args: Mapping[str, Value]) -> Iterator[str]:
        """Yield the settings that the service chose because the row does not set them."""
        for name in ("base_model", "epochs", "batch", "imgsz", "optimizer", "lr0", "workers"):
            if name not in self.found.settings and (name not in ARGUMENTS or name in args):
                yield name

    def _model(self, artifacts_bucket: str) -> ModelRef:
        try:
            model = read_model(self.configuration.base_model, artifacts_bucket)
        except BadRequest as refused:
            self.found.problems.extend(refused.problems)
            return OfficialModel(stem="yolov8s")
        untrained = model if self.configuration.pretrained else _from_scratch(model)
        if untrained is None:
            self.found.problems.append(
                f"{self.found.settings['pretrained']}: must be true for this base_model: "
                "it has no architecture to train from scratch"
            )
        return untrained or model

    def _check_task(self, model: ModelRef) -> None:
        """Check that a published model exists for the task that the row names."""
        task = self.configuration.task
        if task is None or not isinstance(model, OfficialModel | Architecture):
            return
        try:
            used = model_catalog.resolve_name(model.stem, task, scratch=isinstance(model, Architecture))
        except BadRequest as refused:
            self.found.problems.extend(refused.problems)
            return
        if model.task not in (None, task):
            self.found.warnings.append(f"base_model names a {model.task} model, but the task is {task}: {used} is used")

    def _device(self) -> tuple[int, ...] | None:
        device, compute = self.configuration.device, self.configuration.compute
        if device is None:
            return None if compute is None else () if compute == "cpu" else (0,)
        if compute and (compute == "cpu") != (device == []):
            given = self.found.settings
            self.found.problems.append(
                f"{given['compute']} and {given['device']}: they contradict each other; keep one"
            )
        return tuple(device)

    def _check_exports(self, available: frozenset[str]) -> None:
        for name in self.configuration.exports:
            if name not in available:
                spelling, offered = self.found.settings["exports"].spelling, ", ".join(sorted(available)) or "none"
                self.found.problems.append(
                    f"{spelling} = {shown(name)}: {_unsupported(name)}; formats of this worker: {offered}"
                )

    def _without_effect(self, args: Mapping[str, Value]) -> Iterator[str]:
        config, given = self.configuration, self.found.settings
        if config.imgsz % 32:
            used = -(-config.imgsz // 32) * 32
            yield f"imgsz = {config.imgsz} is not a multiple of 32; Ultralytics trains at {used}"
        if args["optimizer"] == "auto" and "lr0" in args:
            yield "lr0 has no effect, because optimizer = auto chooses the learning rate"
        if "preset" in given and _AUGMENTATIONS.isdisjoint(args) and config.preset not in ("none", "custom"):
            yield f"{given['preset'].spelling} had no effect: send the augmentation's values, not its name"
        if "requires" in given and given["requires"].depth:  # the queue reads `requires` only at the top level
            yield f"{given['requires'].spelling} had no effect: move it out of the section"
        if config.optimization_strategy == "bayesian":
            yield "the Bayesian search is not supported: one training uses the given values"


def _bounded(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _MOST_LINES else [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more"]


def _from_scratch(model: ModelRef) -> ModelRef | None:
    """Return the same network without its weights, or None."""
    if not isinstance(model, OfficialModel):
        return model if isinstance(model, Architecture) else None
    untrained = model_catalog.find_architecture(model.stem)
    return replace(untrained, task=model.task) if untrained else None


def _unsupported(name: str) -> str:
    if name in UNSUPPORTED:
        return "needs a tool chain that is not supported"
    if name not in PACKAGES:
        return "this export format does not exist"
    return f"needs the packages {', '.join(PACKAGES[name])} on the worker"
