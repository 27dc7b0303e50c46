"""A `training_runs` row and our types: the only file that knows which column holds what.

A row is a JSON object as the SQLite adapter builds it and as PostgREST returns it, with its JSON columns as text. Whatever
somebody wrote into a row, reading it raises nothing: what cannot be read stays text or is said in `RunRequest.unreadable`,
and `request.plan_of` refuses it with a sentence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from trainer.core.errors import BadRequest, Unavailable
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
from trainer.core.json_text import DEEPEST, TOO_DEEP, is_too_deep, json_from_text
from trainer.core.ports import Worker
from trainer.core.text import shown
from trainer.jobs.requirements import requirements

CANCELED_BY_USER = "Canceled by user."
JOB_COLUMNS = (  # what `job_of` reads
    "id", "run_name", "data_yaml", "base_model", "configuration", "priority", "attempt", "checkpoint", "last_reported_epoch",
    "last_reported_attempt", "created_at", "started_at",
)  # fmt: skip
COLUMNS = (  # what the table's users read
    *JOB_COLUMNS, "project_id", "step_id", "status", "results", "trained_model_url", "created_by", "is_deployed",
    "deployment_status", "deployment_date", "deployment_url", "completed_at", "canceled_at", "cancel_requested", "worker_id",
    "error_message", "updated_at", "max_attempts", "failures", "host_failures", "claim_id", "lease_expires_at", "heartbeat_at", "not_before",
    "progress_epoch", "finish_requested",
)  # fmt: skip
JSON_COLUMNS = frozenset({"configuration", "results", "checkpoint", "data", "host_failures"})
HARDWARE = (  # the columns of trainer_workers that a worker fills itself
    "version", "slots", "device_type", "compute_type", "gpu_name", "gpu_model", "gpu", "gpu_memory_gb", "gpu_vram_gb",
    "gpu_memory_mb", "gpu_vram_mb", "cpu_model", "cpu", "ram_gb",
)  # fmt: skip
LONGEST = {"run_name": 1000, "base_model": 1000, "data_yaml": 10_000}  # characters; as in trainer.guard_request

_INT4 = 2**31 - 1
_MOST_ATTEMPTS = 1_000_000
_RUN_ID = re.compile(r"[0-9A-Za-z_-]{1,64}", re.ASCII)  # it names folders and objects
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


# ── from the row ──


class UnreadJson(str):
    """The text of a JSON column that is not JSON, or out of bounds. It is written back as it is."""

    __slots__ = ()


def json_column(name: str, value: Json) -> Json:
    """The value in a JSON column given as text; `UnreadJson` when it cannot be read. Any other value is itself."""
    if not isinstance(value, str):
        return value
    try:
        # only what strangers write is bounded in length: a worker's results are bounded where they are made
        return json_from_text(value) if name == "configuration" else json_from_text(value, longest=len(value))
    except ValueError:
        return UnreadJson(value)


def is_run_id(value: Json) -> bool:
    """Whether a value may be a run's id. It names folders and objects, and nothing else may name them."""
    return isinstance(value, str) and _RUN_ID.fullmatch(value) is not None


def job_of(row: Mapping[str, Json], unreadable: str | None = None) -> Job:
    """The run in a row, whatever its other columns hold. Raises Unavailable for a row without an id."""
    run_id = row.get("id")
    if not is_run_id(run_id):
        raise Unavailable(
            "training_runs answered with a row that has no valid id: is a proxy or another program in between?"
        )
    request = RunRequest(
        data_yaml=_text(row.get("data_yaml")),
        base_model=_text(row.get("base_model")),
        configuration=row.get("configuration"),
        name=(_text(row.get("run_name")) or "run")[: LONGEST["run_name"]],
        priority=whole(row.get("priority")) or 0,
        unreadable=unreadable or _problem(row),
    )
    return Job(
        id=str(run_id),
        request=request,
        attempt=whole(row.get("attempt")) or 0,
        checkpoint=_own_checkpoint(row.get("checkpoint"), str(run_id)),
        last_reported_epoch=max(0, whole(row.get("last_reported_epoch")) or 0),
        last_reported_attempt=max(0, whole(row.get("last_reported_attempt")) or 0),
        gpus=max(1, math.ceil(requirements(request.configuration).gpus)),
        waited=_seconds_between(row.get("created_at"), row.get("started_at")),
    )


def _problem(row: Mapping[str, Json]) -> str | None:
    """What is wrong with a run besides its configuration; the same as in trainer.guard_request."""
    for name, longest in LONGEST.items():
        if len(_text(row.get(name)) or "") > longest:
            return f"{name}: longer than {longest} characters"
    attempt = whole(row.get("attempt")) or 0
    if not 0 <= attempt <= _MOST_ATTEMPTS:
        return f"attempt = {attempt}: must be from 0 to {_MOST_ATTEMPTS}; queue a new run instead"
    return None


def _seconds_between(earlier: Json, later: Json) -> float | None:
    try:
        return max(0.0, (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None  # not both are times, or times that Python knows


def lease_of(job: Job, worker_id: str, claim_id: str, seconds: float, asked_at: float) -> Lease:
    """The right that a claim gave; `asked_at` is the local time just before the claim was sent."""
    return Lease(job=job, claim_id=claim_id, worker_id=worker_id, seconds=seconds, trusted_until=asked_at + seconds)


def checkpoint_of(value: Json) -> Checkpoint | None:
    """The checkpoint in the `checkpoint` column; None when it is empty or not one."""
    if not isinstance(value, Mapping):
        return None
    epoch, size = whole(value.get("epoch"), low=0), whole(value.get("bytes"), low=0, high=2**63 - 1)
    sha256, key = value.get("sha256"), value.get("key")
    if epoch is None or size is None or not isinstance(sha256, str) or not isinstance(key, str | None):
        return None
    return Checkpoint(epoch=epoch, sha256=sha256, bytes=size, key=key)


def _own_checkpoint(value: Json, run_id: str) -> Checkpoint | None:
    """The checkpoint, if it is one of the run's own: this service reads it, and removes it from the bucket at the end."""
    found = checkpoint_of(value)
    if found is None or found.key is None:
        return found
    is_own = re.fullmatch(rf"training_runs/{re.escape(run_id)}/-?[0-9]{{1,10}}/checkpoints/[^/]+", found.key)
    return found if is_own and not found.key.endswith("/..") else None


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
    """The columns that an outcome writes; `Interrupted` is a release and writes only the results."""
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
        status=status,
        results=clean(outcome.results),
        trained_model_url=clean(url),
        error_message=clean(message),
        host_failed=isinstance(outcome, Retry) and outcome.host_failed,
    )


def insert_of(request: RunRequest) -> JsonObject:
    """The columns of a new queued run. Raises BadRequest for what no worker would read."""
    if isinstance(request.priority, bool) or not -_INT4 <= request.priority <= _INT4:
        raise BadRequest(f"priority {shown(request.priority)}: must be a whole number from {-_INT4} to {_INT4}.")
    if is_too_deep(request.configuration):
        raise BadRequest(f"configuration: {TOO_DEEP}")
    columns: JsonObject = {
        "run_name": clean(request.name or "run"),
        "data_yaml": clean(request.data_yaml),
        "base_model": clean(request.base_model),
        "configuration": clean(request.configuration),
        "priority": request.priority,
        "status": Status.QUEUED.value,
    }
    if problem := _problem(columns):
        raise BadRequest(problem)
    try:
        json_from_text(json.dumps(columns["configuration"], ensure_ascii=False))
    except ValueError as error:
        raise BadRequest(f"configuration: {error}") from None
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
    no JSON its text, and whatever is nested deeper than 32 levels null.
    """
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == DEEPEST:
        return None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [clean(item, depth + 1) for item in value]
    return clean(str(value))


def _text(value: Json) -> str | None:
    return value if value is None or isinstance(value, str) else shown(value)


def whole(value: Json, *, low: int = -_INT4 - 1, high: int = _INT4) -> int | None:
    """A whole number from `low` to `high`; None for everything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None


def clamped(value: Json, default: int) -> int:
    """The nearest number that an `integer` column holds; `default` for what is not a whole number."""
    number = whole(value, low=-(2**63), high=2**63 - 1)
    return default if number is None else max(-_INT4 - 1, min(number, _INT4))
