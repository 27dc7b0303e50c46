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

PAGE = 1000  # PostgREST returns no more rows at once, and does not say so
LARGEST_PAGE = 256 * 2**20  # bytes


def selection(columns: Sequence[str]) -> str:
    """Return PostgREST's `select` for these columns. JSON comes as text: the client must not parse untrusted data."""
    return ",".join(f"{name}::text" if name in JSON_COLUMNS else name for name in columns)


def parsed(columns: JsonObject) -> JsonObject:
    """Return a row with its JSON columns parsed, as far as they can be."""
    return {name: json_column(name, value) if name in JSON_COLUMNS else value for name, value in columns.items()}


def is_uuid(text: str) -> bool:
    """Whether the database takes a text as a run's id; it answers any other with an error."""
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
        """Return the rows of a query; `query` builds it again for each try."""
        rows = retrying(lambda: self.project.rows(query(), LARGEST_PAGE), self.read, StopSignal())
        return [parsed(found) for found in rows]

    def pages(self, query: Callable[[], Any], limit: int | None = None) -> list[JsonObject]:
        """Return all rows of an ordered query, or the first `limit`, however few the server returns at once."""
        found: list[JsonObject] = []
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            start = len(found)
            page = self.rows(lambda: query().range(start, start + size - 1))  # noqa: B023 called at once
            found += page
            if len(page) < size:
                break
        return found
