"""Read the journals of crashed processes, so that the outcomes can be delivered.

A journal can be damaged, or written by another version of the service. If its lease or its outcome is not readable,
the journal is renamed to `.unreadable` and kept for KEEP_RUNS_DAYS. An unreadable event is skipped, because the outcome
is more important.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

from trainer.core.job import Job, Json, JsonObject, Lease, RunEvent, RunRequest
from trainer.worker.journal import NEW, OUTCOME, Journal

T = TypeVar("T")

log = structlog.get_logger()

LARGEST = 2**30  # bytes; only the events that are not delivered yet are kept in memory
_LONGEST_LINE = 16 * 2**20  # bytes; an outcome has a few hundred KiB
_LAST_SEQ = 2**31 - 1
_ABANDONED = 86_400.0  # seconds after which a journal without its final name is removed


@dataclass(frozen=True)
class JournalHeader:
    """The first line of a journal."""

    run_id: str
    attempt: int
    claim_id: str
    created_by: str | None = None
    created_at: str | None = None


HEADER: TypeAdapter[JournalHeader] = TypeAdapter(JournalHeader)
EVENT: TypeAdapter[RunEvent] = TypeAdapter(RunEvent)


def orphaned_journals(folder: Path, worker_id: str, lease_seconds: float) -> Iterator[Journal]:
    """Lock and yield the journals of crashed processes. An unreadable journal does not stop the iteration."""
    _remove_abandoned(folder)
    for path in sorted(folder.glob("*.jsonl")):
        try:
            file = _locked(path)
        except OSError as error:
            log.error("journal cannot be opened, skipping", path=str(path), error=str(error))
            continue
        if file is None:
            continue
        try:
            journal = _read(file, path, worker_id, lease_seconds)
        except (OSError, ValueError) as error:
            set_aside(path, str(error))
            file.close()
        else:
            yield journal


def set_aside(path: Path, reason: str) -> None:
    """Rename a journal so that it is not read again, and log the reason."""
    log.error("journal set aside: unreadable", path=str(path), error=reason[:500])
    try:
        path.rename(path.with_suffix(".unreadable"))
    except OSError as error:
        log.error("journal cannot be renamed", path=str(path), error=str(error))


def _locked(path: Path) -> FileIO | None:
    """Lock the file and return it, or return None if a process holds the lock, or has removed or renamed the file."""
    if not path.is_file():
        return None
    with ExitStack() as opened, suppress(FileNotFoundError, BlockingIOError):
        file = opened.enter_context(path.open("rb+", buffering=0))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            opened.pop_all()
            return file
    return None


def _read(file: FileIO, path: Path, worker_id: str, lease_seconds: float) -> Journal:
    """Return the journal in a file. Raises ValueError if it is not a journal of this version, or OSError."""
    size = os.fstat(file.fileno()).st_size
    if size > LARGEST:
        raise ValueError(f"it has {size} bytes, more than the maximum of {LARGEST}")
    lines = _lines(file)
    header = _validated(HEADER, next(lines, {}).get("lease"), "lease")
    job = Job(
        id=header.run_id,
        request=RunRequest(data_yaml=None),
        attempt=header.attempt,
        created_by=header.created_by,
        created_at=header.created_at,
    )
    lease = Lease(job=job, claim_id=header.claim_id, worker_id=worker_id, seconds=lease_seconds, trusted_until=0.0)
    events: list[RunEvent] = []
    delivered, last_seq, recoveries, outcome, dropped = 0, 0, 0, None, set[int]()
    for line in lines:
        if "outcome" in line:
            outcome = _validated(OUTCOME, line["outcome"], "outcome")
        elif "delivered" in line:
            delivered = max(delivered, _number(line["delivered"]))
            last_seq = max(last_seq, delivered)
            events = [event for event in events if event.seq > delivered]
        elif "dropped" in line:
            dropped.add(_number(line["dropped"]))
        elif "recovery" in line:
            recoveries = max(recoveries, _number(line["recovery"]))
        elif event := _event(line.get("event")):
            events.append(event)
            last_seq = max(last_seq, event.seq)
    pending = [event for event in events if event.seq > delivered and event.seq not in dropped]
    return Journal(
        file, path, lease, pending=pending, last_seq=last_seq, outcome=outcome, recoveries=recoveries,
    )  # fmt: skip


def _lines(file: FileIO) -> Iterator[JsonObject]:
    """Yield the readable lines. The position of the file is then its end, so that new lines are appended."""
    reader = BufferedReader(file, 2**20)
    for text in iter(lambda: reader.readline(_LONGEST_LINE), b""):
        # a line may be incomplete after a crash or on a full disk
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                yield line
    reader.detach()  # the file stays open


def _validated(adapter: TypeAdapter[T], value: Json, what: str) -> T:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        raise ValueError(f"its {what} is not readable by this version") from None


def _event(value: Json) -> RunEvent | None:
    with suppress(ValueError):
        event = EVENT.validate_python(value)
        if 0 < event.seq <= _LAST_SEQ:
            return event
    return None


def _number(value: Json) -> int:
    return value if isinstance(value, int) else 0


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(f"*{NEW}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
