"""The runs of a SQLite queue, for users: the command line, an API, a search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from trainer.core.job import ENDED, Json, JsonObject, RunRequest, Status
from trainer.core.run_row import ALL_RUNS, EventRow, RunFilter, RunOrder, RunPage, RunRow, WorkerRow
from trainer.jobs import sqlite_states as states
from trainer.jobs import write_row as write
from trainer.jobs.row import event_row, run_row_or_none, worker_row
from trainer.jobs.run_list import SORT_KEYS, checked_limit, equalities, page_of, position_of
from trainer.jobs.sqlite_clock import HOST_CLOCK, HostClock
from trainer.jobs.sqlite_file import SqliteFile

_HAS_TAG = (
    "exists (select 1 from json_each(case when json_valid(run_tags) then run_tags else '[]' end) where value = ?)"
)


class SqliteRunTable:
    """`RunTable` over one file, for any number of threads and processes of one host."""

    def __init__(self, path: Path, *, clock: HostClock = HOST_CLOCK, busy_seconds: float = 30.0) -> None:
        self._file = SqliteFile(path, clock, busy_seconds)

    def enqueue(self, request: RunRequest, id: str | None = None) -> str:  # noqa: A002 the column's name
        run_id, columns = write.checked_run_id(id), write.insert_of(request)
        with self._file.writing() as tx:
            row = {"id": run_id, **columns, "created_at": tx.at(), "updated_at": tx.at()}
            if not tx.insert("training_runs", row):
                write.require_same_request(run_id, columns, states.get_run(tx, run_id))
        return run_id

    def get(self, run_id: str) -> RunRow | None:
        with self._file.reading() as tx:
            return run_row_or_none(states.get_run(tx, run_id))

    def list(
        self,
        wanted: RunFilter = ALL_RUNS,
        *,
        order: RunOrder = RunOrder.NEWEST,
        limit: int = 100,
        after: str | None = None,
    ) -> RunPage:
        conditions, values = _conditions(wanted)
        if position := position_of(after, order):
            conditions.append(_later(position, values))
        where = f"where {' and '.join(conditions)}" if conditions else ""
        sorting = ", ".join(f"{name} {'desc' if down else 'asc'}" for name, down in SORT_KEYS[order])
        sql = f"select * from training_runs {where} order by {sorting} limit ?"  # noqa: S608 (no untrusted names)
        with self._file.reading() as tx:
            return page_of(tx.rows(sql, *values, checked_limit(limit) + 1), order, limit)

    def cancel(self, run_id: str) -> RunRow | None:
        with self._file.writing() as tx:
            run = states.get_run(tx, run_id)
            if run is not None and run["status"] == Status.QUEUED:
                run["error_message"] = write.CANCELED_BY_USER
                states.cancel(tx, run)
                states.save(tx, run)
            elif run is not None and run["status"] == Status.RUNNING:
                states.save(tx, run | {"status": Status.CANCELING, "cancel_requested": True})
            return run_row_or_none(states.get_run(tx, run_id))

    def request_finish(self, run_id: str) -> RunRow | None:
        return self._changed(run_id, {"finish_requested": True}, {Status.RUNNING})

    def requeue(self, run_id: str) -> RunRow | None:
        return self._changed(run_id, {"status": Status.QUEUED}, ENDED)

    def set_priority(self, run_id: str, priority: int) -> RunRow | None:
        return self._changed(run_id, {"priority": write.checked_priority(priority)}, set(Status))

    def delete(self, run_id: str) -> bool:
        with self._file.writing() as tx:
            run = states.get_run(tx, run_id)
            if run is None:
                return False
            is_working = run["status"] in (Status.RUNNING, Status.CANCELING)
            if is_working and (run["lease_expires_at"] or "") > tx.at():
                raise write.held_by_worker(run_id)
            tx.connection.execute("delete from training_runs where id = ?", (run["id"],))
            return True

    def workers(self) -> Sequence[WorkerRow]:
        with self._file.reading() as tx:
            return [
                worker_row(row) for row in tx.rows("select * from trainer_workers order by last_seen desc, worker_id")
            ]

    def events(self, run_id: str, after: tuple[int, int] = (0, 0)) -> Sequence[EventRow]:
        sql = "select * from training_run_events where run_id = ? and (attempt, seq) > (?, ?) order by attempt, seq"
        with self._file.reading() as tx:
            return [event_row(row) for row in tx.rows(sql, write.clean(run_id), *after)]

    def _changed(self, run_id: str, columns: JsonObject, statuses: Collection[str]) -> RunRow | None:
        """Update the run if it has one of `statuses`. Return its row in both cases, or None for an unknown run."""
        with self._file.writing() as tx:
            run = states.get_run(tx, run_id)
            if run is not None and run["status"] in statuses:
                states.save(tx, run | columns)
            return run_row_or_none(states.get_run(tx, run_id))


def _conditions(wanted: RunFilter) -> tuple[list[str], list[Json]]:
    conditions, values = [], list[Json]()
    for name, value in equalities(wanted).items():
        conditions.append(f"{name} = ?")
        values.append(write.clean(value))
    for tag in wanted.tags:
        conditions.append(_HAS_TAG)
        values.append(write.clean(tag))
    if wanted.status:
        conditions.append(f"status in ({', '.join('?' * len(wanted.status))})")
        values += [status.value for status in wanted.status]
    return conditions, values


def _later(position: list[tuple[str, bool, Json]], values: list[Json]) -> str:
    """Return the condition for the rows after a position, and append its parameters to `values`."""
    later, same = [], list[tuple[str, Json]]()
    for name, down, value in position:
        later.append(" and ".join([*(f"{column} = ?" for column, _ in same), f"{name} {'<' if down else '>'} ?"]))
        values += [*(known for _, known in same), value]
        same.append((name, value))
    return f"({' or '.join(later)})"
