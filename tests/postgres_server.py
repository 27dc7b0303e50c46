"""A local PostgreSQL server for tests and benchmarks, in the state of a new Supabase project."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MIGRATIONS = sorted((REPOSITORY / "supabase" / "migrations").glob("*.sql"))

# The state of a new Supabase project before any migration: roles, default grants and schemas.
PROJECT = """
create role anon nologin;
create role authenticated nologin;
create role service_role nologin bypassrls;
create role authenticator noinherit login;
grant anon, authenticated, service_role to authenticator;
"""
DATABASE = """
grant usage on schema public to anon, authenticated, service_role;
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
create schema auth;
grant usage on schema auth to anon, authenticated, service_role;
create schema storage;
create table storage.buckets (id text primary key, name text not null unique, public boolean default false);
create table storage.objects (
  id uuid primary key default gen_random_uuid(), bucket_id text references storage.buckets (id), name text);
alter table storage.buckets enable row level security;
alter table storage.objects enable row level security;
"""


class MissingBinary(RuntimeError):
    """PostgreSQL or PostgREST is not installed."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.02)


def stop_process(process: subprocess.Popen[bytes], signum: int) -> None:
    if process.poll() is None:
        process.send_signal(signum)
        process.wait(30)


def postgres_binaries() -> Path:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    on_path = shutil.which("initdb")
    found = [*debian, *([Path(on_path).resolve().parent] if on_path else [])]
    for folder in found:
        if all((folder / name).exists() for name in ("initdb", "postgres", "psql", "pg_isready")):
            return folder
    raise MissingBinary("PostgreSQL is not installed. Install it: apt-get install postgresql.")


class Postgres:
    """A PostgreSQL cluster in `folder`, without fsync.

    If root starts the cluster, PostgreSQL runs as the user `postgres` or `nobody`.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = postgres_binaries()
        self.folder = folder
        self.port = free_port()
        self._as_user = self._unprivileged()
        self._process: subprocess.Popen[bytes] | None = None

    def _unprivileged(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            return []
        users = {entry.pw_name: entry for entry in pwd.getpwall()}
        user = users.get("postgres") or users["nobody"]
        os.chown(self.folder, user.pw_uid, user.pw_gid)
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

    def create(self) -> None:
        subprocess.run(
            [*self._as_user, self.bin / "initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust",
             "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip

    def start(self) -> None:
        log = self.folder / "postgres.log"
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder, "fsync": "off",
            "full_page_writes": "off", "max_connections": 200, "shared_buffers": "256MB",
            "max_wal_size": "2GB", "autovacuum": "off", "jit": "off",
        }  # fmt: skip
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*self._as_user, self.bin / "postgres", "-D", self.folder / "data", *arguments],
                stdout=out, stderr=out, cwd="/",
            )  # fmt: skip
        wait_until(self._answers, self._process, log)

    def _answers(self) -> bool:
        ready = [self.bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    def stop(self) -> None:
        if self._process:
            stop_process(self._process, signal.SIGINT)  # "fast" shutdown, which disconnects clients

    def crash(self) -> None:
        if self._process:
            stop_process(
                self._process, signal.SIGQUIT
            )  # "immediate" shutdown, which needs crash recovery at the next start

    def sql(self, script: str, *, database: str = "app", role: str | None = None, claims: object = None) -> str:
        """Run SQL and return the unaligned output of psql. Raises SqlError with the server's message."""
        before = f"set request.jwt.claims to '{json.dumps(claims)}';\n" if claims else ""
        before += f"set role {role};\n" if role else ""
        done = self._psql(before + script, database)
        return done.stdout.decode().rstrip("\n")

    def plans(self, script: str, *, database: str = "app") -> str:
        """Run SQL and return the plans of all statements, including statements in functions."""
        explain = """load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
            set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set client_min_messages = log;"""
        return self._psql(explain + script, database).stderr.decode()

    def processor_ms(self, statement: str, times: int) -> list[float]:
        """Run a statement `times` times in one session. Return the processor time of each in milliseconds, in order."""
        script = "set log_statement_stats = on; set client_min_messages = log;\n" + f"{statement};\n" * times
        log = self._psql(script, "app").stderr.decode()
        found = re.findall(r"^!\s+([\d.]+) s user, ([\d.]+) s system, [\d.]+ s elapsed", log, re.MULTILINE)
        return [1000 * (float(user) + float(system)) for user, system in found[-times:]]

    def _psql(self, script: str, database: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [self.bin / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1",
             "-p", str(self.port), "-U", "postgres", "-d", database],
            input=script.encode(), capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SqlError(done.stderr.decode())
        return done

    def rows(self, query: str, *, database: str = "app", role: str | None = None, claims: object = None) -> list[Any]:
        """Return a query's rows as JSON objects."""
        # the query is in a CTE, so that INSERT … RETURNING also works
        answer = self.sql(
            f"with q as ({query}) select to_jsonb(q) from q;", database=database, role=role, claims=claims,
        )  # fmt: skip
        return [json.loads(line) for line in answer.splitlines()]

    def create_database(self, name: str, *, migrated: bool = True) -> None:
        self.sql(f"create database {name};", database="postgres")
        self.sql(DATABASE, database=name)
        if migrated:
            self.migrate(name)

    def migrate(self, name: str) -> None:
        """Apply every migration, each in one transaction, as the Supabase CLI does."""
        for migration in MIGRATIONS:
            self.sql(f"begin;\n{migration.read_text()}\ncommit;", database=name)


class SqlError(RuntimeError):
    """An error message of PostgreSQL."""
