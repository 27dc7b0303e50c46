"""Calls and queries of the queue in a Supabase project, repeated while the server does not answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from trainer.core.job import Json, JsonObject
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import StopSignal
from trainer.jobs.row import JSON_COLUMNS, json_column
from trainer.remote.supabase import Project

PAGE = 1000  # PostgREST silently returns no more rows per request
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


class Calls:
    """Calls of database functions and queries on one project."""

    def __init__(self, project: Project, read: RetryPolicy) -> None:
        self.project = project
        self.read = read

    def ask(self, policy: RetryPolicy, function: str, select: str | None = None, **arguments: Json) -> Json:
        """Call a database function and return its answer."""
        return retrying(lambda: self.project.call(function, arguments, select=select), policy, StopSignal())

    def ask_list(self, policy: RetryPolicy, function: str, select: str | None = None, **arguments: Json) -> list[Any]:
        """Call a database function that returns a list."""
        answer = self.ask(policy, function, select, **arguments)
        if not isinstance(answer, list):
            raise self.project.not_json()
        return answer

    def rows(self, query: Callable[[], Any]) -> list[JsonObject]:
        """Return the rows of a query. `query` builds a new query for each try."""
        rows = retrying(lambda: self.project.rows(query(), LARGEST_PAGE), self.read, StopSignal())
        return [parsed(found) for found in rows]

    def pages(self, query: Callable[[], Any], limit: int | None = None) -> list[JsonObject]:
        """Return all rows of an ordered query, or the first `limit` rows, with one request per page."""
        found: list[JsonObject] = []
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            start = len(found)
            page = self.rows(lambda: query().range(start, start + size - 1))  # noqa: B023 called at once
            found += page
            if len(page) < size:
                break
        return found
