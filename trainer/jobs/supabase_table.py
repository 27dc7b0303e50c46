"""The runs of a Supabase project, for users: the command line, an API, a search.

The restricted role can read a run by its id, but only the columns that a worker needs: status, owner, checkpoint and
artifacts. All other methods of `SupabaseRunTable` need the service_role key.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from trainer.core.errors import BadRequest, Conflict
from trainer.core.job import ENDED, Json, JsonObject, RunRequest, Status
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.run_row import ALL_RUNS, EventRow, RunFilter, RunOrder, RunPage, RunRow, WorkerRow
from trainer.core.stop import StopSignal
from trainer.jobs import write_row as write
from trainer.jobs.row import JSON_COLUMNS, RUN_COLUMNS, event_row, json_column, run_row, run_row_or_none, worker_row
from trainer.jobs.run_list import SORT_KEYS, checked_limit, equalities, page_of, position_of
from trainer.remote.supabase import Project

READ = RetryPolicy(tries=4, first_wait=0.5, longest_wait=4.0, total_seconds=20.0)
PAGE = 1000  # rows; PostgREST silently limits a response to this number
LARGEST_PAGE = 256 * 2**20  # bytes


def selection(columns: Sequence[str]) -> str:
    """Return PostgREST's `select` for these columns. JSON columns are text: the client must not parse them."""
    return ",".join(f"{name}::text" if name in JSON_COLUMNS else name for name in columns)


def parsed(columns: JsonObject) -> JsonObject:
    """Return a row with its JSON columns parsed. A column that cannot be parsed stays text."""
    return {name: json_column(name, value) if name in JSON_COLUMNS else value for name, value in columns.items()}


def is_uuid(text: str) -> bool:
    """Return whether a text is a UUID. The database answers any other run id with an error."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


_RUN = selection(RUN_COLUMNS)
_EVENT = selection(("run_id", "attempt", "seq", "at", "kind", "data"))


class SupabaseRunTable:
    """`RunTable` over one project, for any number of threads. `read` limits the retries of each call."""

    def __init__(self, project: Project, *, read: RetryPolicy = READ) -> None:
        self._project = project
        self._read = read

    def enqueue(self, request: RunRequest, id: str | None = None) -> str:  # noqa: A002 the column's name
        # the id is chosen here, so that a repeated insert after a lost response inserts no second run
        run_id, columns = write.checked_run_id(id), write.insert_of(request)
        row = {"id": run_id, **columns}
        inserted = self._rows(lambda: self._runs().upsert(row, on_conflict="id", ignore_duplicates=True).select("id"))
        if not inserted:
            write.require_same_request(run_id, columns, self._stored(run_id))
        return run_id

    def get(self, run_id: str) -> RunRow | None:
        if self._project.role == "trainer_worker":
            return run_row_or_none(self._row("read_training_run", run_id))
        return run_row_or_none(self._stored(run_id))

    def list(
        self,
        wanted: RunFilter = ALL_RUNS,
        *,
        order: RunOrder = RunOrder.NEWEST,
        limit: int = 100,
        after: str | None = None,
    ) -> RunPage:
        position, most = position_of(after, order), checked_limit(limit) + 1
        if position and not all(_is_stored(name, value) for name, _, value in position):
            raise BadRequest("cursor: is not from a list of this table; omit it to get the first page")
        if wanted.project_id is not None and not is_uuid(wanted.project_id):
            return RunPage(runs=())  # the column is a UUID, so no run can match

        def query() -> Any:
            found = _filtered(self._runs().select(_RUN), wanted)
            if position:
                found = found.or_(_later(position))
            for name, down in SORT_KEYS[order]:
                found = found.order(name, desc=down)
            return found

        return page_of(self._pages(query, most), order, limit)

    def cancel(self, run_id: str) -> RunRow | None:
        return run_row_or_none(self._row("cancel_training_run", run_id)) or self.get(run_id)

    def request_finish(self, run_id: str) -> RunRow | None:
        return self._changed(run_id, {"finish_requested": True}, [Status.RUNNING.value])

    def requeue(self, run_id: str) -> RunRow | None:
        return self._changed(run_id, {"status": Status.QUEUED.value}, sorted(ENDED))

    def set_priority(self, run_id: str, priority: int) -> RunRow | None:
        return self._changed(
            run_id, {"priority": write.checked_priority(priority)}, [status.value for status in Status]
        )

    def delete(self, run_id: str) -> bool:
        if not is_uuid(run_id):
            return False
        answer = self._ask(self._read, "delete_training_run", run_id=run_id)
        if answer == "held":
            raise write.held_by_worker(run_id)
        if answer == "kept":
            raise Conflict(f"The database keeps the run {run_id}: a trigger of another program prevents its deletion")
        if answer not in ("deleted", "missing"):
            raise self._project.not_json()
        return bool(answer == "deleted")

    def workers(self) -> Sequence[WorkerRow]:
        rows = self._pages(
            lambda: self._project.table("trainer_workers").select("*").order("last_seen", desc=True).order("worker_id"),
        )
        return [worker_row(row) for row in rows]

    def events(self, run_id: str, after: tuple[int, int] = (0, 0)) -> Sequence[EventRow]:
        if not is_uuid(run_id):
            return []
        attempt, seq = after
        later = f"attempt.gt.{int(attempt)},and(attempt.eq.{int(attempt)},seq.gt.{int(seq)})"
        rows = self._pages(
            lambda: self._project.table("training_run_events").select(_EVENT).eq("run_id", run_id).or_(later)
            .order("attempt").order("seq"),
        )  # fmt: skip
        return [event_row(row) for row in rows]

    def _ask(self, policy: RetryPolicy, function: str, select: str | None = None, **arguments: Json) -> Json:
        """Call a database function and return its answer."""
        return retrying(lambda: self._project.call(function, arguments, select=select), policy, StopSignal())

    def _rows(self, query: Callable[[], Any]) -> Sequence[JsonObject]:
        """Return the rows of a query. `query` builds a new query for each try."""
        rows = retrying(lambda: self._project.rows(query(), LARGEST_PAGE), self._read, StopSignal())
        return [parsed(found) for found in rows]

    def _pages(self, query: Callable[[], Any], limit: int | None = None) -> Sequence[JsonObject]:
        """Return all rows of an ordered query, or the first `limit` rows, with one request per page."""
        found: Sequence[JsonObject] = []
        while limit is None or len(found) < limit:
            size, start = PAGE if limit is None else min(PAGE, limit - len(found)), len(found)
            page = self._rows(lambda: query().range(start, start + size - 1))  # noqa: B023 called at once
            found = [*found, *page]
            if len(page) < size:
                break
        return found

    def _runs(self) -> Any:
        return self._project.table("training_runs")

    def _row(self, function: str, run_id: str) -> JsonObject | None:
        """Call a function that returns one run, and return its row."""
        if not is_uuid(run_id):
            return None
        rows = self._rows(lambda: self._project.function(function, {"run_id": run_id}, select=_RUN))
        return rows[0] if rows else None

    def _stored(self, run_id: str) -> JsonObject | None:
        if not is_uuid(run_id):
            return None
        rows = self._rows(lambda: self._runs().select(_RUN).eq("id", run_id))
        return rows[0] if rows else None

    def _changed(self, run_id: str, columns: JsonObject, statuses: Sequence[str]) -> RunRow | None:
        """Update the run if it has one of `statuses`. Return its row in both cases, or None for an unknown run."""
        if not is_uuid(run_id):
            return None
        rows = self._rows(lambda: self._runs().update(columns).eq("id", run_id).in_("status", statuses).select(_RUN))
        return run_row(rows[0]) if rows else self.get(run_id)


def _filtered(query: Any, wanted: RunFilter) -> Any:
    for name, value in equalities(wanted).items():
        query = query.eq(name, write.clean(value))
    if wanted.tags:
        query = query.filter("run_tags", "cs", "{" + ",".join(_quoted(tag) for tag in wanted.tags) + "}")
    if wanted.status:
        query = query.in_("status", [status.value for status in wanted.status])
    return query


def _is_stored(column: str, value: Json) -> bool:
    """Return whether a column can have this value. The database answers any other value with an error."""
    if column == "id":
        return is_uuid(value)
    return column != "created_at" or _is_time(value)


def _is_time(text: str) -> bool:
    """Return whether a text is a time of PostgreSQL: a time of any year, including years BC, or infinity."""
    year, _, rest = text.removesuffix(" BC").partition("-")
    try:
        return text in ("infinity", "-infinity") or (year.isdecimal() and bool(datetime.fromisoformat(f"2000-{rest}")))
    except ValueError:
        return False


def _later(position: Sequence[tuple[str, bool, Json]]) -> str:
    """Return PostgREST's condition for the rows after a position."""
    later, same = [], list[str]()
    for name, down, value in position:
        step = f"{name}.{'lt' if down else 'gt'}.{_quoted(str(value))}"
        later.append(f"and({','.join([*same, step])})")
        same.append(f"{name}.eq.{_quoted(str(value))}")
    return ",".join(later)


def _quoted(text: str) -> str:
    """Return a value for a PostgREST filter or an array literal, with its special characters escaped."""
    escaped = str(write.clean(text)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
