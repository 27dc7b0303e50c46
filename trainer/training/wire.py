"""The protocol between the supervisor and a training process: one JSON object per line, in both directions.

    supervisor → training process, on its stdin     {"kind": "train", …}    the training order, only as the first line
                                                    {"kind": "stop", "reason": "canceled|shutdown|finish"}
    training process → supervisor, on the           {"kind": "sandbox", "missing": […]}    the report, as the first line
    descriptor of its argument `--events-fd N`      one event of core/events.py per line; `kind` is its type

The report on the sandbox is sent before the process opens the dataset or the model, so the supervisor can believe it. It is
left out if the sandbox is disabled.

Stdout and stderr are not part of the protocol: libraries print there.

A prestarted process is started before its training order exists, so the order names the GPUs. The process sets
CUDA_VISIBLE_DEVICES from `order.devices` ("" for the CPU) before anything uses CUDA. torch reads the variable when CUDA
is initialized, not when torch is imported. End of file on stdin means that the supervisor has ended, or has no training
order for the process. The process then exits with code 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from trainer.core.events import (
    MOST_METRICS,
    Amount,
    BatchProgress,
    CheckpointSaved,
    ChildStopped,
    Count,
    Crashed,
    EpochFinished,
    Event,
    Finished,
    Metrics,
    Phase,
    PhaseStarted,
    Warned,
)
from trainer.core.job import Json, JsonObject
from trainer.core.json_text import is_too_deep, storable
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopReason
from trainer.core.text import escaped

# environment variables that the supervisor sets for a training process
SANDBOX = "TRAINER_SANDBOX"  # the setting SANDBOX: "required", "auto", or "0" (the process does not enter the sandbox)
FAST_LOADER = "TRAINER_FAST_LOADER"  # bytes of decoded images that the process may store on disk

LONGEST_LINE = 8 * 2**20  # bytes of a training order
LONGEST_EVENT = 512 * 1024  # bytes; a report has at most 256 KiB
_QUOTED = 200  # characters of an invalid line in an error message
_LONGEST_TEXTS = {"code": 100, "error": 200, "message": 4000, "sha256": 64, "traceback": 8000}  # characters
_LARGEST_WHOLE = 2**63  # PostgreSQL stores larger numbers only as numeric

ChildEvent: TypeAlias = (
    PhaseStarted | BatchProgress | EpochFinished | CheckpointSaved | Warned | Finished | ChildStopped | Crashed
)
# phases that the training process enters; the worker reports the other phases
CHILD_PHASES = frozenset(
    {Phase.STARTING, Phase.LOADING, Phase.SCANNING, Phase.TRAINING, Phase.VALIDATING, Phase.FINALIZING}
)
# kind → fields that only the worker sets
_WORKER_FIELDS = {"phase": ("files", "bytes", "rate"), "checkpoint": ("key",)}
Number: TypeAlias = Count | Amount | None


class Report(BaseModel):
    """The parts of a report that become part of `results`. All other parts are dropped.

    So a training process cannot set `artifacts`, `run_dir`, `plan`, `progress` or `dataset` of a row.
    """

    mAP: Number = None  # noqa: N815 - the names in the row
    mAP50: Number = None  # noqa: N815
    precision: Number = None
    recall: Number = None
    top1: Number = None
    top5: Number = None
    metrics: Metrics = {}
    test: JsonObject | None = None
    per_class: list[JsonObject] | None = None
    confusion_matrix: JsonObject | None = None
    curves: JsonObject | None = None
    predictions: JsonObject = {}
    exports: dict[str, str] = {}
    environment: JsonObject = {}
    epochs_completed: Count = 0
    best_epoch: Count | None = None
    train_seconds: Amount = 0.0
    batch: Number = None
    images_per_second: Number = None
    notes: list[str] = []


_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])
_CHILD_EVENTS: TypeAdapter[ChildEvent] = TypeAdapter(Annotated[ChildEvent, Field(discriminator="kind")])
_ORDERS = TypeAdapter(TrainingOrder)


class WireError(ValueError):
    """A line that is not a valid message for its receiver."""


@dataclass(frozen=True, kw_only=True)
class SandboxReport:
    """The result of entering the sandbox: the protections that this host does not have, or why the process ends now."""

    missing: tuple[str, ...] = ()
    problem: str | None = None


_REPORTS = TypeAdapter(SandboxReport)


def encode_event(event: Event) -> bytes:
    """Return the event as one line. NaN and infinity are left out of mappings and become null in lists.

    Long texts are truncated, because the supervisor does not read a line of more than `LONGEST_EVENT` bytes.
    """
    return _line(_truncated(_EVENTS.dump_python(event, mode="python")))


def decode_event(line: bytes) -> ChildEvent:
    """Return the event of one line of a training process; unknown keys are ignored. Raises `WireError`."""
    data = _object(line, LONGEST_EVENT, lambda text: escaped(storable(text)))
    for name in _WORKER_FIELDS.get(str(data.get("kind")), ()):
        data.pop(name, None)
    try:
        event = _CHILD_EVENTS.validate_python(_truncated(data))
        if isinstance(event, Finished):
            event = replace(event, report=Report.model_validate(event.report).model_dump(exclude_unset=True))
    except ValidationError as error:
        raise WireError(f"{_quoted(line)} is not an event: {_first_problem(error)}") from None
    if problem := _problem(event):
        raise WireError(f"{_quoted(line)} is not an event: {problem}")
    return event


def _truncated(data: JsonObject) -> JsonObject:
    """Return the fields of an event with texts of at most `_LONGEST_TEXTS` characters."""
    texts = {name: data[name] for name in _LONGEST_TEXTS if isinstance(data.get(name), str)}
    long = {name: text for name, text in texts.items() if len(text) > _LONGEST_TEXTS[name]}
    return data | {name: f"{text[: _LONGEST_TEXTS[name] - 1]}…" for name, text in long.items()}


def _problem(event: ChildEvent) -> str | None:
    """Return the reason why a training process may not send this event, or None."""
    if isinstance(event, PhaseStarted | BatchProgress | Crashed) and event.phase not in CHILD_PHASES:
        return f"the phase {event.phase.value} is a phase of the worker"
    metrics = getattr(event, "metrics", getattr(event, "losses", ()))
    return f"it has {len(metrics)} metrics, more than {MOST_METRICS}" if len(metrics) > MOST_METRICS else None


def encode_sandbox(report: SandboxReport) -> bytes:
    """Return the report on the sandbox as one line."""
    return _line({"kind": "sandbox", **asdict(report)})


def decode_sandbox(line: bytes) -> SandboxReport:
    """Return the report on the sandbox. Raises `WireError`."""
    data = _object(line, LONGEST_EVENT, storable)
    if data.get("kind") != "sandbox":
        raise WireError(f"{_quoted(line)} is not a report on the sandbox")
    try:
        return _REPORTS.validate_python(data)
    except ValidationError as error:
        raise WireError(f"{_quoted(line)} is not a report on the sandbox: {_first_problem(error)}") from None


def encode_order(order: TrainingOrder) -> bytes:
    """Return the training order as one line, without the dataset's findings and summary."""
    order = replace(order, plan=order.plan.without_secrets(), dataset=replace(order.dataset, findings=(), summary={}))
    return _line({"kind": "train", **_ORDERS.dump_python(order, mode="json")})


def encode_stop(reason: StopReason) -> bytes:
    """Return a stop request as one line."""
    return _line({"kind": "stop", "reason": reason.value})


def decode_command(line: bytes) -> TrainingOrder | StopReason:
    """Return the command of one line: a training order, or the reason for a stop request. Raises `WireError`."""
    data = _object(line, LONGEST_LINE, storable)
    if data.get("kind") not in ("train", "stop"):
        raise WireError(f"{_quoted(line)} is not a command: kind must be train or stop")
    try:
        return StopReason(data.get("reason")) if data["kind"] == "stop" else _ORDERS.validate_python(data)
    except ValueError as error:
        problem = _first_problem(error) if isinstance(error, ValidationError) else error
        raise WireError(f"{_quoted(line)} is not a command: {problem}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"])) or "kind"
    return f"{place[:_QUOTED]}: {first['msg'][:_QUOTED]}"  # both can contain text of the line


def _line(data: JsonObject) -> bytes:
    return json.dumps(_clean(data, storable), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes, longest: int, clean_text: Callable[[str], str]) -> JsonObject:
    if len(line) > longest:
        raise WireError(f"{_quoted(line)} has {len(line)} bytes; a line has at most {longest} bytes")
    try:
        data = json.loads(line)
        if is_too_deep(data):
            raise ValueError("it is nested too deeply")
        data = _clean(data, clean_text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{_quoted(line)} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise WireError(f"{_quoted(line)} is not a JSON object")
    return data


def _clean(value: Json, clean_text: Callable[[str], str]) -> Any:
    """Return the value without NaN and infinity, and with cleaned texts. Raises ValueError for a too large number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int) and not -_LARGEST_WHOLE <= value < _LARGEST_WHOLE:
        raise ValueError("a whole number is too large")
    if isinstance(value, dict):
        finite = ((key, v) for key, v in value.items() if not isinstance(v, float) or math.isfinite(v))
        return {clean_text(str(key)): _clean(v, clean_text) for key, v in finite}
    if isinstance(value, list | tuple):
        return [_clean(item, clean_text) for item in value]
    return value


def _quoted(line: bytes) -> str:
    text = escaped(line[: 4 * _QUOTED].decode("utf-8", "replace").strip())
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "…")
