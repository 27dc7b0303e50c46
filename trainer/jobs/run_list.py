"""Lists of runs: sort keys, and cursors that continue after the last run seen, whatever was inserted since."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime

from trainer.core.errors import BadRequest
from trainer.core.job import Json
from trainer.core.run_row import RunFilter, RunOrder, RunPage, RunRow
from trainer.jobs.row import is_run_id, run_row, whole

MOST_RUNS = 1000  # of one page; PostgREST returns no more rows at once, and does not say so

# sort keys in front of the id, which is always ascending: column, descending
SORT_KEYS: dict[RunOrder, tuple[tuple[str, bool], ...]] = {
    RunOrder.NEWEST: (("created_at", True),),
    RunOrder.OLDEST: (("created_at", False),),
    RunOrder.CLAIM: (("priority", True), ("created_at", False)),
}


def page_of(rows: list[dict[str, Json]], order: RunOrder, limit: int) -> RunPage:
    """Return the page that `limit` + 1 rows, or fewer, make: one row more than `limit` says that there is a next page."""
    runs = tuple(run_row(row) for row in rows[:limit])
    return RunPage(runs=runs, next=_cursor(runs[-1], order) if len(rows) > limit and runs else None)


def checked_limit(limit: int) -> int:
    if not 1 <= limit <= MOST_RUNS:
        raise BadRequest(f"limit = {limit}: must be from 1 to {MOST_RUNS}")
    return limit


def _cursor(run: RunRow, order: RunOrder) -> str:
    values = [getattr(run, name) for name, _ in SORT_KEYS[order]]
    return base64.urlsafe_b64encode(json.dumps([order.value, *values, run.id]).encode()).decode()


def position_of(cursor: str | None, order: RunOrder) -> list[tuple[str, bool, Json]] | None:
    """Return the sort keys after which a page starts: column, descending, value. None for the first page.

    Raises BadRequest for a cursor that no list in this order returned.
    """
    if cursor is None:
        return None
    columns = (*SORT_KEYS[order], ("id", False))
    try:
        named, *values = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        usable = named == order.value and len(values) == len(columns)
        position = [(name, down, value) for (name, down), value in zip(columns, values, strict=True)]
        usable = usable and all(_is_sort_value(name, value) for name, _, value in position)
    except (ValueError, TypeError, RecursionError, binascii.Error):
        usable = False
    if not usable:
        raise BadRequest(f"cursor = {cursor[:80]!r}: no list in the order {order.value} returned it; start without one")
    return position


def _is_sort_value(name: str, value: Json) -> bool:
    if name == "priority":
        return whole(value) is not None
    if name == "id":
        return is_run_id(value)
    return isinstance(value, str) and (value.lstrip("-") == "infinity" or bool(datetime.fromisoformat(value)))


def equalities(wanted: RunFilter) -> dict[str, str]:
    """Return the columns that must equal a value."""
    columns = {
        "project_id": wanted.project_id,
        "run_group": wanted.group,
        "worker_id": wanted.worker_id,
        "created_by": wanted.created_by,
    }
    return {name: value for name, value in columns.items() if value is not None}
