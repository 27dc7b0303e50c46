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
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from trainer.core.events import Event
from trainer.core.job import JsonObject
from trainer.core.json_text import storable
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopReason

# environment variables that the supervisor sets for a training process
SANDBOX = "TRAINER_SANDBOX"  # the setting SANDBOX: "required", "auto", or "0" (the process does not enter the sandbox)
FAST_LOADER = "TRAINER_FAST_LOADER"  # bytes of decoded images that the process may store on disk

LONGEST_LINE = 8 * 2**20  # bytes; a final report with its curves has a few hundred KiB
_QUOTED = 200  # characters of an invalid line in an error message

_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])
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
    """Return the event as one line. NaN and infinity are left out of mappings and become null in lists."""
    return _line(_EVENTS.dump_python(event, mode="python"))


def decode_event(line: bytes) -> Event:
    """Return the event of one line; unknown keys are ignored. Raises `WireError`."""
    data = _object(line)
    try:
        return _EVENTS.validate_python(data)
    except ValidationError as error:
        raise WireError(f"{_quoted(line)} is not an event: {_first_problem(error)}") from None


def encode_sandbox(report: SandboxReport) -> bytes:
    """Return the report on the sandbox as one line."""
    return _line({"kind": "sandbox", **asdict(report)})


def decode_sandbox(line: bytes) -> SandboxReport:
    """Return the report on the sandbox. Raises `WireError`."""
    data = _object(line)
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
    data = _object(line)
    if data.get("kind") not in ("train", "stop"):
        raise WireError(f"{_quoted(line)} is not a command: kind must be train or stop")
    try:
        return StopReason(data.get("reason")) if data["kind"] == "stop" else _ORDERS.validate_python(data)
    except ValueError as error:
        problem = _first_problem(error) if isinstance(error, ValidationError) else error
        raise WireError(f"{_quoted(line)} is not a command: {problem}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'kind'}: {first['msg']}"


def _line(data: JsonObject) -> bytes:
    return json.dumps(_clean(data), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> JsonObject:
    if len(line) > LONGEST_LINE:
        raise WireError(f"{_quoted(line)} has {len(line)} bytes; a line has at most {LONGEST_LINE} bytes")
    try:
        data = _clean(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise WireError(f"{_quoted(line)} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise WireError(f"{_quoted(line)} is not a JSON object")
    return data


def _clean(value: Any) -> Any:
    """Return the value without NaN, infinity, NUL and lone surrogates, which JSON or Postgres' jsonb cannot store."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {_clean(str(k)): _clean(v) for k, v in value.items() if not isinstance(v, float) or math.isfinite(v)}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _quoted(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "…")
