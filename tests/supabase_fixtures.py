"""Fixtures for tests that need Supabase. Without the Supabase binaries, these tests are skipped; in CI, they fail."""

import os
import uuid
from typing import Any

import httpx
import pytest

from tests.postgres_server import MissingBinary
from tests.supabase_stack import running_stack
from trainer.jobs.supabase import SupabaseQueue
from trainer.remote.supabase import CallLimits, Project

# the servers run on this host, which can be busy
LIMITS = CallLimits(connect=5.0, read=30.0, total=60.0)


@pytest.fixture(scope="session")
def supabase_servers():
    try:
        with running_stack() as stack:
            yield stack
    except MissingBinary as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.fixture
def supabase(supabase_servers):
    """Return the servers with empty tables and without faults."""
    supabase_servers.clear()
    return supabase_servers


@pytest.fixture
def supabase_lab(supabase):
    with SupabaseLab(supabase) as lab:
        yield lab


class SupabaseLab:
    """A queue in an empty project, with functions that change rows as the web app does, over REST."""

    def __init__(self, stack) -> None:
        self.stack = stack
        self._projects: list[Project] = []
        self.queue = self.another()
        key = stack.service_key
        self._app = httpx.Client(
            base_url=f"{stack.url}/rest/v1",
            headers={"apikey": key, "Authorization": f"Bearer {key}", "Prefer": "return=representation"},
            timeout=60,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._app.close()
        for project in self._projects:
            project.close()

    def another(self, key: str | None = None, **policies) -> SupabaseQueue:
        project = Project(self.stack.url, key or self.stack.service_key, LIMITS)
        self._projects.append(project)
        return SupabaseQueue(project, **policies)

    def insert(self, **columns: Any) -> str:
        row = {"id": str(uuid.uuid4()), "run_name": "run", **columns}
        return self._changed("POST", {}, row)[0]["id"]

    def edit(self, run_id: str, **columns: Any) -> None:
        assert self._changed("PATCH", {"id": f"eq.{run_id}"}, columns)

    def force(self, run_id: str, **sql: str) -> None:
        changes = ", ".join(f"{name} = {value}" for name, value in sql.items())
        self.stack.sql(
            f"set session_replication_role = replica; update training_runs set {changes} where id = '{run_id}'",
        )

    def delete(self, run_id: str) -> None:
        assert self._changed("DELETE", {"id": f"eq.{run_id}"}, None)

    def rows(self) -> dict[str, dict[str, Any]]:
        answer = self._app.get("/training_runs")
        return {row["id"]: row for row in answer.raise_for_status().json()}

    def worker(self, worker_id: str) -> dict[str, Any] | None:
        answer = self._app.get("/trainer_workers", params={"worker_id": f"eq.{worker_id}"})
        rows = answer.raise_for_status().json()
        return rows[0] if rows else None

    def _changed(self, method: str, where: dict[str, str], columns: Any) -> list[dict[str, Any]]:
        answer = self._app.request(method, "/training_runs", params=where, json=columns)
        assert answer.is_success, answer.text
        return answer.json()
