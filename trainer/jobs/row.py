"""Read a `training_runs` row. write_row.py converts in the other direction.

A row is the JSON object that the SQLite adapter or PostgREST returns, with JSON columns as text. The only content that
raises an error is an invalid id. A value that cannot be read stays text or is reported in
`RunRequest.unreadable`. Then `request.plan_of` rejects the run with the message in `unreadable`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from datetime import UTC, datetime
from typing import TypeVar

from trainer.core.artifact_keys import is_checkpoint_of
from trainer.core.errors import Unavailable
from trainer.core.job import Checkpoint, Job, Json, Lease, RunRequest
from trainer.core.json_text import json_from_text
from trainer.core.run_row import EventRow, RunRow, WorkerRow
from trainer.core.text import shown

JOB_COLUMNS = (  # the columns that `job_of` reads
    "id", "run_name", "data_yaml", "base_model", "configuration", "priority", "attempt", "checkpoint", "last_reported_epoch",
    "last_reported_attempt", "created_at", "started_at", "run_group", "run_tags", "created_by", "project_id",
)  # fmt: skip
JSON_COLUMNS = frozenset({"configuration", "results", "checkpoint", "data", "host_failures"})
HARDWARE = (  # the columns of trainer_workers that a worker fills itself
    "version", "slots", "device_type", "compute_type", "gpu_name", "gpu_model", "gpu", "gpu_memory_gb", "gpu_vram_gb",
    "gpu_memory_mb", "gpu_vram_mb", "cpu_model", "cpu", "ram_gb",
)  # fmt: skip
# characters; trainer.guard_request has the same limits
LONGEST = {"run_name": 1000, "base_model": 1000, "data_yaml": 10_000}
Row = TypeVar("Row", RunRow, WorkerRow, EventRow)
INT4 = 2**31 - 1  # the largest number in an `integer` column

_MOST_ATTEMPTS = 1_000_000
_NUMBER = re.compile(r"\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*", re.ASCII)
_MOST_DEVICES = 64
_LONGEST_LIST = 1000  # maximum number of characters in a list of devices
_RUN_ID = re.compile(r"[0-9A-Za-z_-]{1,64}", re.ASCII)  # the id is part of the names of folders and objects


class UnreadJson(str):
    """The text of a JSON column that is not JSON or exceeds the limits. It is written back unchanged."""

    __slots__ = ()


def json_column(name: str, value: Json) -> Json:
    """Return the parsed value of a JSON column, or `UnreadJson`. A value that is not text is returned unchanged."""
    if not isinstance(value, str):
        return value
    try:
        # only the configuration is untrusted: a worker limits its own results
        return json_from_text(value) if name == "configuration" else json_from_text(value, longest=len(value))
    except ValueError:
        return UnreadJson(value)


def is_run_id(value: Json) -> bool:
    """Return whether a value can be the id of a run. Names of folders and objects contain the id."""
    return isinstance(value, str) and _RUN_ID.fullmatch(value) is not None


def job_of(row: Mapping[str, Json], unreadable: str | None = None) -> Job:
    """Return the run in a row, even if other columns are invalid. Raises Unavailable for a row without a valid id."""
    run_id = row.get("id")
    if not is_run_id(run_id):
        raise Unavailable(
            "training_runs returned a row without a valid id; look for a proxy between this host and the database"
        )
    request = RunRequest(
        data_yaml=_text(row.get("data_yaml")),
        base_model=_text(row.get("base_model")),
        configuration=row.get("configuration"),
        name=(_text(row.get("run_name")) or "run")[: LONGEST["run_name"]],
        priority=whole(row.get("priority")) or 0,
        group=_text(row.get("run_group")),
        tags=_tags(row.get("run_tags")),
        unreadable=unreadable or problem_of(row),
    )
    return Job(
        id=str(run_id),
        request=request,
        attempt=whole(row.get("attempt")) or 0,
        checkpoint=_own_checkpoint(row.get("checkpoint"), str(run_id)),
        last_reported_epoch=max(0, whole(row.get("last_reported_epoch")) or 0),
        last_reported_attempt=max(0, whole(row.get("last_reported_attempt")) or 0),
        gpus=max(1, requirements(request.configuration).gpus),
        created_by=_text(row.get("created_by")),
        created_at=_in_utc(_text(row.get("created_at"))),
        project_id=_text(row.get("project_id")),
        waited=_seconds_between(row.get("created_at"), row.get("started_at")),
    )


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """The minimum resources of a worker; 0 means no requirement. `gpu_memory_gb` is per GPU, in whole GB."""

    gpus: int = 0
    gpu_memory_gb: int = 0

    def served_by(self, capabilities: Mapping[str, float]) -> bool:
        """Return whether a worker meets the requirements. Its memory is rounded up: 23.6 GiB count as 24."""
        memory = math.ceil(capabilities.get("gpu_memory_gb", 0.0))
        return self.gpus <= capabilities.get("gpus", 0.0) and self.gpu_memory_gb <= memory


def requirements(configuration: Json) -> Requirements:
    """Return the requirements in `requires.gpus`, `requires.gpu_memory_gb` and `device`. Invalid values are ignored.

    Every claim calls this function for many runs, so it is cheap and never raises. `trainer.requirements` in
    supabase/migrations/ follows the same rules.
    """
    settings = json_column("configuration", configuration)
    if not isinstance(settings, Mapping):
        return Requirements()
    asked = settings.get("requires")
    asked = asked if isinstance(asked, Mapping) else {}
    devices = _device_count(settings.get("device"))
    return Requirements(
        gpus=max(_amount(asked.get("gpus")), devices if devices > 1 else 0),
        gpu_memory_gb=_amount(asked.get("gpu_memory_gb")),
    )


def _amount(value: Json) -> int:
    """Return an amount, rounded up; 0 for an invalid value."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        value = str(value)
    return math.ceil(float(value)) if isinstance(value, str) and _NUMBER.fullmatch(value) else 0


def _device_count(device: Json) -> int:
    """Return the number of devices in a text like "0,1" or a list like [0, 1]; 0 for any other value."""
    if isinstance(device, str):
        device = [part for part in device.split(",") if part.strip()] if len(device) <= _LONGEST_LIST else []
    return len(device) if isinstance(device, list) and len(device) <= _MOST_DEVICES else 0


def problem_of(row: Mapping[str, Json]) -> str | None:
    """Return the problem with the columns of a run, or None. The configuration is not checked.

    trainer.guard_request has the same rules.
    """
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
        return None  # a value is not a time, or the time is outside of the range of Python


def _in_utc(moment: str | None) -> str | None:
    """Return a time in UTC, because the time zone of the database can change. Other text is not changed."""
    with suppress(TypeError, ValueError, OverflowError):
        return datetime.fromisoformat(moment or "").astimezone(UTC).isoformat()
    return moment


def lease_of(job: Job, worker_id: str, claim_id: str, seconds: float, asked_at: float) -> Lease:
    """Return the lease of a claim; `asked_at` is the local time just before the claim was sent."""
    return Lease(job=job, claim_id=claim_id, worker_id=worker_id, seconds=seconds, trusted_until=asked_at + seconds)


def checkpoint_of(value: Json) -> Checkpoint | None:
    """Return the checkpoint in the `checkpoint` column, or None if there is no valid checkpoint."""
    if not isinstance(value, Mapping):
        return None
    epoch, size = whole(value.get("epoch"), low=0), whole(value.get("bytes"), low=0, high=2**63 - 1)
    sha256, key = value.get("sha256"), value.get("key")
    if epoch is None or size is None or not isinstance(sha256, str) or not isinstance(key, str | None):
        return None
    return Checkpoint(epoch=epoch, sha256=sha256, bytes=size, key=key)


def _own_checkpoint(value: Json, run_id: str) -> Checkpoint | None:
    """Return the checkpoint, or None if its key belongs to another run.

    The key is checked, because the service later deletes the object with this key.
    """
    found = checkpoint_of(value)
    if found is None or found.key is None:
        return found
    return found if is_checkpoint_of(run_id, found.key) else None


_COLUMNS = {"group": "run_group", "tags": "run_tags"}  # field → column, if the names differ
RUN_COLUMNS = tuple(_COLUMNS.get(field.name, field.name) for field in fields(RunRow))  # omits the fencing token


def run_row(row: Mapping[str, Json]) -> RunRow:
    """Return the typed row. The fencing token is left out even if `row` has it."""
    return _typed(RunRow, row)


def run_row_or_none(row: Mapping[str, Json] | None) -> RunRow | None:
    return None if row is None else run_row(row)


def worker_row(row: Mapping[str, Json]) -> WorkerRow:
    hardware = {name: row[name] for name in HARDWARE[2:] if row.get(name) is not None}
    return _typed(WorkerRow, {**row, "hardware": hardware})


def event_row(row: Mapping[str, Json]) -> EventRow:
    return _typed(EventRow, row)


def _typed(kind: type[Row], row: Mapping[str, Json]) -> Row:
    return kind(**{field.name: _field(field, row.get(_COLUMNS.get(field.name, field.name))) for field in fields(kind)})


def _field(field: Field[Json], value: Json) -> Json:
    default = None if field.default is MISSING else field.default
    match field.type:
        case "str":
            return _text(value) or default or ""
        case "str | None":
            return _text(value)
        case "int":
            return clamped(value, default or 0)
        case "int | None":
            return whole(value)
        case "bool":
            return value is True
        case "tuple[str, ...]":
            return _tags(value)
        case "Mapping[str, int]" | "JsonObject":
            return value if isinstance(value, dict) else {}
        case _:
            return value


def _tags(value: Json) -> tuple[str, ...]:
    return tuple(tag for tag in value if isinstance(tag, str)) if isinstance(value, list) else ()


def _text(value: Json) -> str | None:
    return value if value is None or isinstance(value, str) else shown(value)


def whole(value: Json, *, low: int = -INT4 - 1, high: int = INT4) -> int | None:
    """Return a whole number from `low` to `high`; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None


def clamped(value: Json, default: int) -> int:
    """Return the nearest number that fits an `integer` column, or `default` if the value is not a whole number."""
    number = whole(value, low=-(2**63), high=2**63 - 1)
    return default if number is None else max(-INT4 - 1, min(number, INT4))
