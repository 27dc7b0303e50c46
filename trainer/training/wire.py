"""What the supervisor and the child say to each other: one JSON object a line, in both directions.

    supervisor → child, on its stdin                {"kind": "train", …}    once, the first line
                                                    {"kind": "stop", "reason": "canceled|shutdown|finish"}
    child → supervisor, on the descriptor that      one event of core/events.py a line, told apart by `kind`
    its argument `--events-fd N` names

Nothing of this ever travels on stdout or stderr: those belong to whatever a library prints.

For the child's side: a warm spare is started before its order exists, so the GPUs travel in the order. Set
CUDA_VISIBLE_DEVICES from `order.devices` ("" for none) before anything touches CUDA; torch reads it when CUDA starts,
not when it is imported. End of file on stdin means that the supervisor is gone or wants no training: exit 0.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from trainer.core.dataset import PreparedDataset, Task
from trainer.core.errors import BadRequest
from trainer.core.events import Event
from trainer.core.job import JsonObject
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopReason

Command: TypeAlias = TrainingOrder | StopReason

LONGEST_LINE = 8 * 2**20  # bytes; a final report with its curves has some hundred KiB
_QUOTED = 200  # characters of a bad line that an error repeats

_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


class WireError(ValueError):
    """A line that is not what this side of the wire may hear."""


def encode_event(event: Event) -> bytes:
    """The event as one line. Numbers that JSON cannot hold (NaN, ±inf) are left out of mappings and null in lists."""
    return _line(_EVENTS.dump_python(event, mode="python"))


def decode_event(line: bytes) -> Event:
    """The event of one line; keys that this version does not know are ignored. Raises `WireError`."""
    data = _object(line)
    try:
        return _EVENTS.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WireError(f"{_quoted(line)} is not an event: {where or 'kind'}: {first['msg']}") from None


def encode_order(order: TrainingOrder) -> bytes:
    """The training as one line; the dataset's findings and summary stay with the supervisor."""
    dataset = order.dataset
    return _line(
        {
            "kind": "train",
            "plan": order.plan.without_secrets().as_json(),
            "model": str(order.model),
            "dataset": {
                "data": str(dataset.data),
                "root": str(dataset.root),
                "task": dataset.task.value,
                "names": list(dataset.names),
                "images": dict(dataset.images),
                "fingerprint": dataset.fingerprint,
            },
            "run_dir": str(order.run_dir),
            "devices": list(order.devices),
            "resume": None if order.resume is None else str(order.resume),
            "best_of": None if order.best_of is None else str(order.best_of),
            "setup": order.setup,
            "last_reported_epoch": order.last_reported_epoch,
        },
    )


def encode_stop(reason: StopReason) -> bytes:
    """A polite request to stop, as one line."""
    return _line({"kind": "stop", "reason": reason.value})


def decode_command(line: bytes) -> Command:
    """What the supervisor asks for: a training, or a stop with its reason. Raises `WireError`."""
    data = _object(line)
    if data.get("kind") not in ("train", "stop"):
        raise WireError(f"{_quoted(line)} is not a command: kind must be train or stop")
    try:
        return StopReason(data["reason"]) if data["kind"] == "stop" else _order(data)
    except (LookupError, TypeError, ValueError, AttributeError, BadRequest) as error:
        raise WireError(f"{_quoted(line)} is not a command: {error!r}") from error


def decode_order(line: bytes) -> TrainingOrder:
    """The training that one line asks for. Raises `WireError`."""
    command = decode_command(line)
    if not isinstance(command, TrainingOrder):
        raise WireError(f"{_quoted(line)} is not an order to train")
    return command


def _order(data: JsonObject) -> TrainingOrder:
    dataset = data["dataset"]
    return TrainingOrder(
        dataset=PreparedDataset(
            root=Path(dataset["root"]),
            data=Path(dataset["data"]),
            task=Task(dataset["task"]),
            names=tuple(dataset["names"]),
            images=dict(dataset["images"]),
            fingerprint=dataset["fingerprint"],
        ),
        plan=TrainPlan.from_json(data["plan"]),
        model=Path(data["model"]),
        run_dir=Path(data["run_dir"]),
        devices=tuple(int(device) for device in data.get("devices") or ()),
        resume=None if data.get("resume") is None else Path(data["resume"]),
        best_of=None if data.get("best_of") is None else Path(data["best_of"]),
        setup=data.get("setup"),
        last_reported_epoch=int(data.get("last_reported_epoch") or 0),
    )


def _line(data: JsonObject) -> bytes:
    return json.dumps(_clean(data), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> JsonObject:
    if len(line) > LONGEST_LINE:
        raise WireError(f"{_quoted(line)} is {len(line)} bytes long, more than a line may have")
    try:
        data = _clean(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise WireError(f"{_quoted(line)} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise WireError(f"{_quoted(line)} is not a JSON object")
    return data


def _clean(value: Any) -> Any:
    """The value without what JSON (NaN, inf) and Postgres' jsonb (NUL, lone surrogates) cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, dict):
        return {_clean(str(k)): _clean(v) for k, v in value.items() if not _is_unspeakable(v)}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _is_unspeakable(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _quoted(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "…")
