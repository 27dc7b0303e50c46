"""The queues of the contract tests, each with functions that let a test act as the web app.

To test another adapter, add its name to `ADAPTERS` and make a fixture `<name>_lab` visible in this folder. The fixture
returns a `QueueLab`. Without the fixture, the tests of the adapter are skipped.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytest

from trainer.core.job import Lease, RunEvent, RunRequest
from trainer.core.ports import Queue, RunTable, Worker
from trainer.jobs.sqlite import SqliteQueue
from trainer.jobs.sqlite_file import loaded

ADAPTERS = ("sqlite", "supabase")
MEMORY = Path("/dev/shm")


class QueueAndTable(Queue, RunTable, Protocol):
    pass


class QueueLab(Protocol):
    """A queue on an empty database, with functions that change the database as other programs do."""

    queue: QueueAndTable

    def another(self) -> QueueAndTable:
        """Return a second adapter that shares only the database, as another worker process would."""

    def insert(self, **columns: Any) -> str:
        """Insert a row as the web app does (JSON as Python values, times as ISO text). Return its id."""

    def edit(self, run_id: str, **columns: Any) -> None:
        """Update columns of the row as the web app does, without the adapter."""

    def force(self, run_id: str, **sql: str) -> None:
        """Set columns to SQL expressions without any validation, as in a row from before the validation existed."""

    def delete(self, run_id: str) -> None:
        """Delete the row as the web app does."""

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return all runs by id, with every column including the fencing token."""

    def worker(self, worker_id: str) -> dict[str, Any] | None:
        """Return the row of trainer_workers, or None."""


@pytest.fixture(params=ADAPTERS)
def queue_lab(request, tmp_path):
    if request.param == "sqlite":
        # the database is in memory if possible, because disk syncs take most of the time of the queue tests
        with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
            yield SqliteLab(Path(folder) / "queue.db")
        return
    try:
        yield request.getfixturevalue(f"{request.param}_lab")
    except pytest.FixtureLookupError:
        pytest.skip(f"the fixture {request.param}_lab is not visible in this folder")


class SqliteLab:
    def __init__(self, path) -> None:
        self.path = path
        self.queue = self.another()

    def another(self) -> SqliteQueue:
        return SqliteQueue(self.path)

    def insert(self, **columns: Any) -> str:
        run_id = str(uuid.uuid4())
        now = ago(0)
        row = {"id": run_id, "run_name": "run", "created_at": now, "updated_at": now, **columns}
        self._execute(
            f"insert into training_runs ({', '.join(row)}) values ({', '.join('?' * len(row))})",
            _stored(row),
        )
        return run_id

    def edit(self, run_id: str, **columns: Any) -> None:
        changes = ", ".join(f"{name} = ?" for name in columns)
        self._execute(f"update training_runs set {changes} where id = ?", [*_stored(columns), run_id])

    def force(self, run_id: str, **sql: str) -> None:
        changes = ", ".join(f"{name} = {value}" for name, value in sql.items())
        self._execute(f"update training_runs set {changes} where id = ?", [run_id])

    def delete(self, run_id: str) -> None:
        self._execute("delete from training_runs where id = ?", [run_id])

    def rows(self) -> dict[str, dict[str, Any]]:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            found = [dict(row) for row in connection.execute("select * from training_runs")]
        return {row["id"]: {name: loaded(name, value) for name, value in row.items()} for row in found}

    def worker(self, worker_id: str) -> dict[str, Any] | None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            row = connection.execute("select * from trainer_workers where worker_id = ?", [worker_id]).fetchone()
        return None if row is None else dict(row)

    def _execute(self, sql: str, values: list[Any]) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("pragma foreign_keys = on")
            connection.execute(sql, values)


def _stored(columns: dict[str, Any]) -> list[Any]:
    return [
        json.dumps(value)
        if name in ("configuration", "results", "checkpoint", "run_tags") and value is not None
        else value
        for name, value in columns.items()
    ]


# ── helpers of the queue tests ──


def ago(seconds: float) -> str:
    """Return the time `seconds` before now (negative: after now) in the format of a row."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="microseconds")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def expire(lab: QueueLab, run_id: str) -> None:
    lab.edit(run_id, lease_expires_at=ago(1))


def enqueue(lab: QueueLab, **request: Any) -> str:
    return lab.queue.enqueue(RunRequest(**{"data_yaml": "set/data.yaml", **request}))


def claim(
    lab: QueueLab, worker: str = "w1", *, claim_id: str | None = None, seconds: float = 60, **capabilities: float
):
    return lab.queue.claim(Worker(id=worker, capabilities=capabilities), claim_id or str(uuid.uuid4()), seconds)


def claimed(lab: QueueLab, worker: str = "w1", **request: Any) -> Lease:
    """Enqueue a run, claim it and return its lease."""
    run_id = enqueue(lab, **request)
    lease = claim(lab, worker)
    assert lease is not None
    assert lease.job.id == run_id
    return lease


_seqs = itertools.count(1)


def event(kind: str = "phase", **data: Any) -> RunEvent:
    return RunEvent(seq=next(_seqs), at="2026-01-02T03:04:05.678901+00:00", kind=kind, data=data)


def checkpoint(epoch: int, key: str | None = None) -> RunEvent:
    return event("checkpoint", epoch=epoch, sha256="ab" * 32, bytes=1000 + epoch, path="/runs/ck.pt", key=key)


def key_of(lease: Lease, epoch: int) -> str:
    """Return a valid checkpoint key of the run; keys with another prefix are ignored."""
    return f"training_runs/{lease.job.id}/{lease.job.attempt}/checkpoints/epoch-{epoch:05d}.pt"
