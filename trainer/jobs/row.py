"""A `training_runs` row and our types: the only file that knows which column holds what.

A row is a JSON object as PostgREST returns it and as the SQLite adapter builds it. Reading never fails because of
what somebody wrote into a JSON column: `configuration` stays unparsed and `TrainPlan.parse` says what is wrong with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from trainer.core.errors import BadRequest, Misconfigured
from trainer.core.job import (
    Canceled,
    Checkpoint,
    Completed,
    Failed,
    Job,
    Json,
    JsonObject,
    Lease,
    Retry,
    RunEvent,
    RunRequest,
    Status,
)
from trainer.core.ports import Worker

CANCELED_BY_USER = "Canceled by user."
HARDWARE = (  # the columns of trainer_workers that a worker fills itself
    "version", "slots", "device_type", "compute_type", "gpu_name", "gpu_model", "gpu", "gpu_memory_gb", "gpu_vram_gb",
    "gpu_memory_mb", "gpu_vram_mb", "cpu_model", "cpu", "ram_gb",
)  # fmt: skip

_INT4 = 2**31 - 1
_DEEPEST = 100  # levels of nesting; no results and no configuration of ours come near
_NUMBER = re.compile(r"\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*", re.ASCII)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


# ── from the row ──


def job_of(row: Mapping[str, Json]) -> Job:
    """The run in a row, whatever its JSON columns hold."""
    run_id = row.get("id")
    if not run_id:
        raise Misconfigured("training_runs returned a row without an id: apply the migrations in supabase/migrations/.")
    request = RunRequest(
        data_yaml=_text(row.get("data_yaml")),
        base_model=_text(row.get("base_model")),
        configuration=row.get("configuration"),
        name=_text(row.get("run_name")) or "run",
        priority=_whole(row.get("priority")) or 0,
    )
    return Job(
        id=str(run_id),
        request=request,
        attempt=_whole(row.get("attempt")) or 0,
        checkpoint=checkpoint_of(row.get("checkpoint")),
        told_epoch=_whole(row.get("told_epoch")) or 0,
        gpus=max(1, math.ceil(requirements(request.configuration).gpus)),
        waited=_seconds_between(row.get("created_at"), row.get("started_at")),
    )


def _seconds_between(earlier: Json, later: Json) -> float | None:
    try:
        return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
    except (TypeError, ValueError):
        return None  # not both are times yet


def lease_of(row: Mapping[str, Json], worker_id: str, claim_id: str, seconds: float, asked_at: float) -> Lease:
    """The right that a claim gave; `asked_at` is the monotonic time just before the claim was sent."""
    return Lease(
        job=job_of(row), claim_id=claim_id, worker_id=worker_id, seconds=seconds, trusted_until=asked_at + seconds,
    )


def checkpoint_of(value: Json) -> Checkpoint | None:
    """The checkpoint in the `checkpoint` column; None when it is empty or not one."""
    if not isinstance(value, Mapping):
        return None
    epoch, size = _whole(value.get("epoch")), _whole(value.get("bytes"))
    sha256, key = value.get("sha256"), value.get("key")
    if epoch is None or size is None or not isinstance(sha256, str) or not isinstance(key, str | None):
        return None
    return Checkpoint(epoch=epoch, sha256=sha256, bytes=size, key=key)


# ── what a run needs ──


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a worker must offer to be given the run; 0 asks for nothing. `gpu_memory_gb` is per accelerator."""

    gpus: float = 0.0
    gpu_memory_gb: float = 0.0

    def served_by(self, capabilities: Mapping[str, float]) -> bool:
        return (
            self.gpus <= capabilities.get("gpus", 0.0)
            and self.gpu_memory_gb <= capabilities.get("gpu_memory_gb", 0.0)
        )  # fmt: skip


def requirements(configuration: Json) -> Requirements:
    """`requires.gpus`, `requires.gpu_memory_gb` and a `device` that lists several GPUs. Nonsense asks for nothing."""
    settings = _parsed(configuration)
    if not isinstance(settings, Mapping):
        return Requirements()
    asked = settings.get("requires")
    asked = asked if isinstance(asked, Mapping) else {}
    devices = _device_count(settings.get("device"))
    return Requirements(
        gpus=max(_amount(asked.get("gpus")), devices if devices > 1 else 0.0),
        gpu_memory_gb=_amount(asked.get("gpu_memory_gb")),
    )


def _parsed(configuration: Json) -> Json:
    """The configuration itself, or what the JSON text in it says."""
    if not isinstance(configuration, str):
        return configuration
    try:
        return json.loads(configuration)
    except (ValueError, RecursionError):
        return None


def _amount(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not _NUMBER.fullmatch(str(value)):
        return 0.0
    return float(value)


def _device_count(device: Json) -> int:
    """How many devices "0,1" or [0, 1] names; 0 for what is no list."""
    if isinstance(device, str):
        return sum(1 for part in device.split(",") if part.strip())
    return len(device) if isinstance(device, list) else 0


# ── to the row ──


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What `finish_training_run` is told. `status` is QUEUED when another attempt is asked for."""

    status: Status
    results: JsonObject
    trained_model_url: str | None
    error_message: str | None
    host_failed: bool


def ending_of(outcome: Completed | Failed | Retry | Canceled) -> Ending:
    """The columns that an outcome writes; `Interrupted` writes none of them and is a release."""
    match outcome:
        case Completed():
            status, url, message = Status.COMPLETED, outcome.trained_model_url, None
        case Failed():
            status, url, message = Status.FAILED, None, outcome.message
        case Retry():
            status, url, message = Status.QUEUED, None, outcome.message
        case Canceled():
            status, url, message = Status.CANCELED, None, outcome.message
        case _:
            assert_never(outcome)
    return Ending(
        status=status, results=clean(outcome.results), trained_model_url=clean(url), error_message=clean(message),
        host_failed=isinstance(outcome, Retry) and outcome.host_failed,
    )


def insert_of(request: RunRequest) -> JsonObject:
    """The columns of a new queued run."""
    if isinstance(request.priority, bool) or not -_INT4 <= request.priority <= _INT4:
        raise BadRequest(f"priority {request.priority}: must be a whole number from {-_INT4} to {_INT4}.")
    columns: JsonObject = clean({
        "run_name": request.name or "run",
        "data_yaml": request.data_yaml,
        "base_model": request.base_model,
        "configuration": request.configuration,
        "priority": request.priority,
        "status": Status.QUEUED.value,
    })
    return columns


def checkpoint_json(checkpoint: Checkpoint | None) -> JsonObject | None:
    """What the `checkpoint` column holds; None (leave it as it is) for a checkpoint that no other host can reach."""
    if checkpoint is None or checkpoint.key is None:
        return None
    return {
        "epoch": checkpoint.epoch,
        "sha256": checkpoint.sha256,
        "bytes": checkpoint.bytes,
        "key": clean(checkpoint.key),
    }


def event_json(event: RunEvent) -> JsonObject:
    return {"seq": event.seq, "at": event.at, "kind": clean(event.kind), "data": clean(event.data)}


def events_json(events: Sequence[RunEvent]) -> list[JsonObject]:
    return [event_json(event) for event in events]


def offer_json(worker: Worker) -> JsonObject:
    """What a claim says about its worker: capabilities at the top, the known hardware columns below `hardware`."""
    hardware = {name: worker.hardware[name] for name in HARDWARE if name in worker.hardware}
    offer: JsonObject = clean({**worker.capabilities, "hardware": hardware})
    return offer


def clean(value: Json, depth: int = 0) -> Json:
    """The same value as PostgreSQL can store it.

    Not a number and infinite become null (a missing metric), NUL and lone surrogates U+FFFD, keys strings, what is
    no JSON its text, and whatever is nested deeper than 100 levels null.
    """
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == _DEEPEST:
        return None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [clean(item, depth + 1) for item in value]
    return clean(str(value))


def _text(value: Json) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def _whole(value: Json) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None
