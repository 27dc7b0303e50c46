"""The SQLite file of the queue: its tables, its transactions and its errors.

Each call opens its own connection, so threads share nothing and child processes inherit nothing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.core.errors import Misconfigured, Refused, Unavailable
from trainer.core.job import Json, JsonObject
from trainer.core.run_row import RunRow
from trainer.jobs.row import JSON_COLUMNS, UnreadJson, clamped, json_column
from trainer.jobs.sqlite_clock import HostClock, queue_time
from trainer.jobs.sqlite_schema import SCHEMA, SCHEMA_VERSION

_JSON_COLUMNS = JSON_COLUMNS | {"run_tags"}
_BOOLEAN_COLUMNS = {field.name for field in fields(RunRow) if field.type == "bool"}
_WHOLE_COLUMNS: dict[str, Any] = {field.name: field.default for field in fields(RunRow) if field.type == "int"}

_PASSING = {
    sqlite3.SQLITE_BUSY: "it is locked by another program",
    sqlite3.SQLITE_LOCKED: "it is locked by another program",
    sqlite3.SQLITE_FULL: "its disk is full; free some space",
    sqlite3.SQLITE_IOERR: "its disk fails to read or write; check the disk and its free space",
    sqlite3.SQLITE_NOMEM: "the host has too little free memory",
}
_LASTING = {
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that the folder exists and that this user can write to it",
    sqlite3.SQLITE_READONLY: "it is read-only; give this user the right to write to the file and its folder",
    sqlite3.SQLITE_PERM: "this user has no access to it; give this user the right to write to the file and its folder",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; choose another file",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a backup, or move it away to start with an empty queue",
}

_REFUSALS = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG})


@dataclass(frozen=True)
class Transaction:
    """An open transaction. `now` is the queue's time in seconds since 1970, read at the start of the transaction."""

    connection: sqlite3.Connection
    now: float

    def at(self, seconds: float = 0.0) -> str:
        """Return the time `seconds` from now in the format of the tables."""
        return timestamp(self.now + seconds)

    def rows(self, sql: str, *values: Json) -> list[JsonObject]:
        cursor = self.connection.execute(sql, values)
        names = [column[0] for column in cursor.description]
        return [{name: loaded(name, value) for name, value in zip(names, row, strict=True)} for row in cursor]

    def row(self, sql: str, *values: Json) -> JsonObject | None:
        found = self.rows(sql, *values)
        return found[0] if found else None

    def insert(self, table: str, columns: JsonObject) -> bool:
        """Insert a row and return True, or return False if its key exists already."""
        names, places = ", ".join(columns), ", ".join("?" * len(columns))
        sql = f"insert into {table} ({names}) values ({places}) on conflict do nothing"  # noqa: S608 (no untrusted names)
        return self.connection.execute(sql, [_dumped(*item) for item in columns.items()]).rowcount == 1

    def update(self, table: str, key: str, columns: JsonObject) -> None:
        """Write `columns` into the row with the same `key`."""
        changes = ", ".join(f"{name} = ?" for name in columns)
        sql = f"update {table} set {changes} where {key} = ?"  # noqa: S608 (no untrusted names)
        self.connection.execute(sql, [*(_dumped(*item) for item in columns.items()), columns[key]])


class SqliteFile:
    """The file of a queue. It is created with its tables if it does not exist.

    Raises `Misconfigured` if the file cannot be used, `Unavailable` if it is temporarily not available.
    """

    def __init__(self, path: Path, clock: HostClock, busy_seconds: float) -> None:
        self._path = path.absolute()
        self._clock = clock
        self._busy_seconds = busy_seconds
        with self._translated():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect("rwc")) as connection:
                self._create(connection)

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Open a write transaction; committed at the end of the block, rolled back after an exception."""
        with self._translated(), closing(self._connect("rw")) as connection:
            connection.execute("begin immediate")
            yield Transaction(connection, queue_time(connection, self._clock, keep=True))
            connection.execute("commit")

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Open a read transaction. It reads a consistent snapshot, and a writer does not block it."""
        with self._translated(), closing(self._connect("rw")) as connection:
            connection.execute("begin")
            yield Transaction(connection, queue_time(connection, self._clock, keep=False))

    def _connect(self, mode: str) -> sqlite3.Connection:
        # mode=rw: if the file was deleted, SQLite must not create an empty file in its place
        uri = f"{self._path.as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=self._busy_seconds, isolation_level=None)
        connection.execute("pragma foreign_keys = on")
        connection.execute("pragma synchronous = full")  # in this mode a commit survives a power cut
        # text of other programs can be invalid UTF-8
        connection.text_factory = lambda content: content.decode(errors="replace")
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        if not self._is_current(connection):
            connection.execute("begin immediate")
            if not self._is_current(connection):  # no other process has created the tables meanwhile
                if connection.execute("select 1 from sqlite_master").fetchone():
                    raise Misconfigured(f"The file {self._path} is another program's database: choose another file.")
                for statement in _statements(SCHEMA):
                    connection.execute(statement)
                connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
            connection.execute("commit")
        self._set_wal(connection)

    def _is_current(self, connection: sqlite3.Connection) -> bool:
        """Return whether the file has the tables; a new file has version 0. Raises Misconfigured for another version."""
        version = connection.execute("pragma user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise Misconfigured(
                f"The queue file {self._path} has version {version}, and this trainer needs version {SCHEMA_VERSION}: use "
                f"the trainer for version {version}, or move the file away to start with an empty queue.",
            )
        return bool(version)

    def _set_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to the write-ahead log, so that readers and the writer do not wait for each other."""
        deadline = time.monotonic() + self._busy_seconds
        while connection.execute("pragma journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("pragma journal_mode = wal")
            except sqlite3.OperationalError as error:
                # this pragma does not honor the busy timeout
                if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = _primary(error)
            if code in _PASSING:
                raise Unavailable(f"The queue file {self._path} is not available: {_PASSING[code]}.") from error
            if code in _REFUSALS:
                raise Refused(f"The queue file {self._path} refuses a value: {error}.") from error
            if code is None:  # a programming error, not a problem of the file
                raise
            why = _LASTING.get(code, f"SQLite reports {error}; the file may belong to another version or program")
            raise Misconfigured(f"The queue file {self._path} cannot be used: {why}.") from error
        except OSError as error:
            raise Misconfigured(
                f"The queue file {self._path} cannot be used: {error.strerror} at {error.filename}.",
            ) from error


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def loaded(name: str, value: Json) -> Json:
    """Return the value of a column, converted to its type. SQLite stores values of any type in any column."""
    if isinstance(value, bytes):
        # a query compares the id as text, so it never finds a row whose id is a blob
        value = None if name == "id" else value.decode(errors="replace")
    if name == "host_failures":
        counts = json_column(name, value)
        return {worker: clamped(times, 1) for worker, times in counts.items()} if isinstance(counts, dict) else {}
    if name in _JSON_COLUMNS:
        return json_column(name, value)
    if name in _WHOLE_COLUMNS:
        return clamped(value, _WHOLE_COLUMNS[name])
    return bool(value) if name in _BOOLEAN_COLUMNS else value


def _dumped(name: str, value: Json) -> Json:
    is_json = name in _JSON_COLUMNS and value is not None and not isinstance(value, UnreadJson)
    return json.dumps(value) if is_json else value


def _statements(script: str) -> list[str]:
    """Split a script into statements; `executescript` would commit the open transaction."""
    statements, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements


def _primary(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary result code: the low byte of the extended result code."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
