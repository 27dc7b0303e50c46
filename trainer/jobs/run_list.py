"""Lists of runs: sort keys and cursors. A cursor names the last run of a page, so new runs do not shift pages."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import suppress

from trainer.core.errors import BadRequest
from trainer.core.job import Json
from trainer.core.json_text import storable
from trainer.core.run_row import RunFilter, RunOrder, RunPage, RunRow
from trainer.jobs.row import run_row, whole

MOST_RUNS = 1000  # runs per page; PostgREST silently limits a response to 1000 rows

# sort keys: column, and True for a descending order
SORT_KEYS: dict[RunOrder, tuple[tuple[str, bool], ...]] = {
    RunOrder.NEWEST: (("created_at", True), ("id", False)),
    RunOrder.OLDEST: (("created_at", False), ("id", False)),
    RunOrder.CLAIM: (("priority", True), ("created_at", False), ("id", False)),
}


def page_of(rows: Sequence[dict[str, Json]], order: RunOrder, limit: int) -> RunPage:
    """Return a page of the first `limit` rows. If there are more than `limit` rows, the page has a cursor."""
    runs = tuple(run_row(row) for row in rows[:limit])
    return RunPage(runs=runs, next=_cursor(runs[-1], order) if len(rows) > limit and runs else None)


def checked_limit(limit: int) -> int:
    if not 1 <= limit <= MOST_RUNS:
        raise BadRequest(f"limit = {limit}: must be from 1 to {MOST_RUNS}")
    return limit


def _cursor(run: RunRow, order: RunOrder) -> str:
    values = [getattr(run, name) for name, _ in SORT_KEYS[order]]
    return base64.urlsafe_b64encode(json.dumps([order.value, *values]).encode()).decode()


def position_of(cursor: str | None, order: RunOrder) -> list[tuple[str, bool, Json]] | None:
    """Return the position after which a page starts: (column, descending, value) per sort key.

    Return None for the first page.

    Raises BadRequest if the cursor is not from a list in this order.
    """
    if cursor is None:
        return None
    with suppress(ValueError, TypeError, RecursionError):
        named, *values = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        position = [(name, down, value) for (name, down), value in zip(SORT_KEYS[order], values, strict=True)]
        if named == order.value and all(_is_sort_value(name, value) for name, _, value in position):
            return position
    raise BadRequest(
        f"cursor = {cursor[:80]!r}: is not from a list in the order {order.value}; omit it to get the first page"
    )


def _is_sort_value(name: str, value: Json) -> bool:
    if name == "priority":
        return whole(value) is not None
    return isinstance(value, str) and storable(value) == value  # other programs can write any text into these columns


def equalities(wanted: RunFilter) -> dict[str, str]:
    """Return the columns that the filter compares for equality, with their values."""
    columns = {
        "project_id": wanted.project_id,
        "run_group": wanted.group,
        "worker_id": wanted.worker_id,
        "created_by": wanted.created_by,
    }
    return {name: value for name, value in columns.items() if value is not None}
