"""Convert our types to columns of `training_runs` that PostgreSQL and SQLite can store."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from trainer.core.errors import BadRequest, Conflict
from trainer.core.job import (
    Canceled,
    Checkpoint,
    Completed,
    Failed,
    Interrupted,
    Json,
    JsonObject,
    Retry,
    RunEvent,
    RunRequest,
    Status,
)
from trainer.core.json_text import DEEPEST, TOO_DEEP, is_too_deep, json_from_text, storable
from trainer.core.ports import Worker
from trainer.core.text import shown
from trainer.jobs.row import HARDWARE, INT4, problem_of

CANCELED_BY_USER = "Canceled by user."
MOST_TAGS = 50
LONGEST_TAG = 100  # characters
LONGEST_GROUP = 200  # characters


def insert_of(request: RunRequest) -> JsonObject:
    """Return the columns of a new queued run. Raises BadRequest for values that every worker would reject."""
    _check_labels(request)
    if is_too_deep(request.configuration):
        raise BadRequest(f"configuration: {TOO_DEEP}")
    columns: JsonObject = {
        "run_name": clean(request.name or "run"),
        "data_yaml": clean(request.data_yaml),
        "base_model": clean(request.base_model),
        "configuration": clean(request.configuration),
        "priority": checked_priority(request.priority),
        "run_group": clean(request.group),
        "run_tags": clean(list(dict.fromkeys(request.tags))),
        "status": Status.QUEUED.value,
    }
    if problem := problem_of(columns):
        raise BadRequest(problem)
    try:
        json_from_text(json.dumps(columns["configuration"], ensure_ascii=False))
    except ValueError as error:
        raise BadRequest(f"configuration: {error}") from None
    return columns


def _check_labels(request: RunRequest) -> None:
    if len(request.group or "") > LONGEST_GROUP:
        raise BadRequest(f"group: longer than {LONGEST_GROUP} characters")
    if len(request.tags) > MOST_TAGS or any(len(tag) > LONGEST_TAG for tag in request.tags):
        raise BadRequest(f"tags: more than {MOST_TAGS} tags, or a tag is longer than {LONGEST_TAG} characters")


def checked_priority(priority: int) -> int:
    """Return the priority if its column can store the number. Raises BadRequest."""
    if isinstance(priority, bool) or not -INT4 <= priority <= INT4:
        raise BadRequest(f"priority = {shown(priority)}: must be a whole number from {-INT4} to {INT4}.")
    return priority


def checked_run_id(run_id: str | None) -> str:
    """Return the id of a new run: the given UUID in canonical form, or a new UUID. Raises BadRequest."""
    try:
        return str(uuid.UUID(run_id) if run_id is not None else uuid.uuid4())
    except (ValueError, AttributeError):
        raise BadRequest(f"id = {str(run_id)[:80]!r}: must be a UUID; omit it to get a new ID") from None


def held_by_worker(run_id: str) -> Conflict:
    return Conflict(
        f"A worker holds the lease of run {run_id}: cancel the run, wait until it has ended, then delete it"
    )


def require_same_request(run_id: str, wanted: Mapping[str, Json], stored: Mapping[str, Json] | None) -> None:
    """Raise Conflict unless the stored run was queued with the same request.

    The status and the priority are not compared, because both may have changed since then.
    """
    for name in ("run_name", "data_yaml", "base_model", "configuration", "run_group", "run_tags"):
        if stored is None or _comparable(stored.get(name)) != _comparable(wanted[name]):
            raise Conflict(f"id = {run_id}: there is another run with this id ({name} differs); use a new id")


def _comparable(value: Json) -> Json:
    # PostgreSQL returns a large float as a whole number with all of its digits
    return json.loads(json.dumps(value), parse_int=float)


def outcome_columns(outcome: Completed | Failed | Retry | Canceled) -> JsonObject:
    """Return the arguments of `finish_training_run`. The status is QUEUED if the outcome requests another attempt."""
    return {
        "status": Status.QUEUED if isinstance(outcome, Retry) else Status(outcome.kind),
        "results": clean(outcome.results),
        "trained_model_url": clean(outcome.trained_model_url) if isinstance(outcome, Completed) else None,
        "error_message": None if isinstance(outcome, Completed) else clean(outcome.message),
        "host_failed": isinstance(outcome, Retry) and outcome.host_failed,
    }


def release_columns(outcome: Interrupted) -> JsonObject:
    """Return the arguments of `release_training_run`."""
    return {"checkpoint": checkpoint_json(outcome.checkpoint), "results": clean(outcome.results) or None}


def checkpoint_json(checkpoint: Checkpoint | None) -> JsonObject | None:
    """Return the value of the `checkpoint` column, or None (no change) for a checkpoint that is not in the bucket."""
    if checkpoint is None or checkpoint.key is None:
        return None
    columns: JsonObject = clean(asdict(checkpoint))
    return columns


def events_json(events: Sequence[RunEvent]) -> list[JsonObject]:
    """Return the argument `events` of `beat_training_run`."""
    return [
        {"seq": event.seq, "at": event.at, "kind": clean(event.kind), "data": clean(event.data)} for event in events
    ]


def offer_json(worker: Worker) -> JsonObject:
    """Return the description of a worker for a claim: its capabilities, and its hardware columns in `hardware`."""
    hardware = {name: worker.hardware[name] for name in HARDWARE if name in worker.hardware}
    offer: JsonObject = clean({**worker.capabilities, "hardware": hardware})
    return offer


def clean(value: Json, depth: int = 0) -> Json:
    """Return a copy of the value that PostgreSQL can store.

    NaN, infinity, and containers nested deeper than 32 levels become null. NUL and lone surrogates become U+FFFD. Keys
    and values of other types become text.
    """
    if isinstance(value, str):
        return storable(value)
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
