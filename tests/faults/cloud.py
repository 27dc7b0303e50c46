"""A Supabase project under test: real PostgreSQL and PostgREST, a fake Storage server, and a record of all run changes.

After every test, `check_invariants` checks I1 to I5, I7 and I8 with that record and the rows. A test asserts only its
own results.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx

from tests.faults.proxy import Proxy
from tests.faults.record import RECORD, check_change
from tests.storage_server import StorageServer
from tests.supabase_stack import running_stack
from trainer.core.job import Status

BUCKET = "training-artifacts"


class Bucket(StorageServer):
    """The fake Storage server, with a list of all writes."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.writes = []  # (time.time(), bucket, key)

    def commit(self, bucket, key, file, mime):
        stored = super().commit(bucket, key, file, mime)
        self.writes.append((time.time(), bucket, key))
        return stored

    def stored(self, bucket) -> set[str]:
        """Return the keys of all objects."""
        with self.lock:
            return set(self.objects[bucket])

    def reset(self, key):
        with self.lock:
            self.faults.clear()
            self.writes.clear()
            self.requests.clear()
            self.received = self.sent = 0
            self.limit = None
            self.keys = {key: "service"}
            for objects in self.objects.values():
                objects.clear()


class Cloud:
    def __init__(self, stack, storage: Bucket, data: Path) -> None:
        self.stack = stack
        self.storage = storage
        self.data = data
        self.gateway = stack.gateway
        self.key = stack.service_key
        self.sql = stack.sql
        self._app = httpx.Client(
            base_url=f"http://127.0.0.1:{stack.postgrest.port}",
            headers={"Authorization": f"Bearer {self.key}", "Prefer": "return=representation"},
            timeout=30,
        )
        self.stack.sql(RECORD)
        columns = self.stack.rows(
            "select attname as name from pg_attribute"
            " where attrelid = 'training_runs'::regclass and attnum > 0 and not attisdropped"
        )
        # read as text, because Python cannot read every configuration that the tests insert
        self._columns = ",".join({"configuration": "configuration::text"}.get(c["name"], c["name"]) for c in columns)

    def close(self) -> None:
        self._app.close()

    def clear(self) -> None:
        self.stack.clear()
        self.sql("delete from faults.changes; delete from faults.stale_events;")
        self.storage.reset(self.key)

    # ── the web app ──

    def enqueue(self, data=None, run_id=None, **configuration) -> str:
        columns = {key: configuration.pop(key) for key in ("max_attempts", "priority") if key in configuration}
        if data is not None:
            columns["data_yaml"] = data
        return self.insert(id=run_id or str(uuid.uuid4()), configuration={"epochs": 6} | configuration, **columns)

    def insert(self, **columns) -> str:
        row = {"run_name": "run", "base_model": "yolo11n.yaml", "data_yaml": str(self.data), **columns}
        return self._changed("POST", {}, row)[0]["id"]

    def store_dataset(self) -> str:
        """Upload the drawn dataset to the bucket, and return the reference to it."""
        folder = self.data.parent
        for path in folder.rglob("*"):
            if path.is_file():
                self.storage.put("datasets", f"set/{path.relative_to(folder)}", path.read_bytes())
        return "storage:datasets/set/data.yaml"

    def cancel(self, run_id: str) -> None:
        self._app.post("/rpc/cancel_training_run", json={"run_id": run_id}).raise_for_status()

    def edit(self, run_id: str, *, if_status: str | None = None, **columns) -> None:
        """Change columns of the row. If `if_status` is given, a row with another status is not changed."""
        where = {"id": f"eq.{run_id}"} | ({"status": f"eq.{if_status}"} if if_status else {})
        self._changed("PATCH", where, columns)

    def delete(self, run_id: str) -> None:
        self._changed("DELETE", {"id": f"eq.{run_id}"}, None)

    def row(self, run_id: str):
        rows = self._rows(id=f"eq.{run_id}")
        return rows[0] if rows else None

    def rows(self):
        return self._rows(order="created_at")

    def events(self, run_id: str, kind=None):
        where = {"run_id": f"eq.{run_id}", "order": "attempt,seq"} | ({"kind": f"eq.{kind}"} if kind else {})
        return self._read("/training_run_events", **where)

    def count_epochs(self) -> int:
        """Return the number of epochs that all runs have reported."""
        where = {"kind": "eq.epoch", "select": "seq", "limit": "1"}
        answer = self._app.get("/training_run_events", params=where, headers={"Prefer": "count=exact"})
        return int(answer.raise_for_status().headers["Content-Range"].rpartition("/")[2])

    def epochs(self, run_id: str) -> dict[int, list[int]]:
        """Return the epochs that each attempt reported, in the order of the reports."""
        found: dict[int, list[int]] = {}
        for event in self.events(run_id, "epoch"):
            found.setdefault(event["attempt"], []).append(event["data"]["epoch"])
        return found

    def trained(self, run_id: str) -> dict[int, list[int]]:
        """Return the epochs that each attempt trained, without the earlier epochs that it reported first."""
        found: dict[int, list[int]] = {}
        for event in self.events(run_id):
            if event["kind"] == "phase" and event["data"]["phase"] == "training":
                found.setdefault(event["attempt"], [])
            elif event["kind"] == "epoch" and event["attempt"] in found:
                found[event["attempt"]].append(event["data"]["epoch"])
        return {attempt: epochs for attempt, epochs in found.items() if epochs}

    def phases(self, run_id: str, attempt: int) -> list[str]:
        return [e["data"]["phase"] for e in self.events(run_id, "phase") if e["attempt"] == attempt]

    def warnings(self, run_id: str) -> list[str]:
        return [event["data"]["code"] for event in self.events(run_id, "warning")]

    def _rows(self, **where):
        rows = self._read("/training_runs", select=self._columns, **where)
        for row in rows:
            with suppress(ValueError, TypeError, RecursionError):
                row["configuration"] = json.loads(row["configuration"])
        return rows

    def _read(self, path: str, **where):
        return self._app.get(path, params=where).raise_for_status().json()

    def _changed(self, method: str, where, columns):
        answer = self._app.request(method, "/training_runs", params=where | {"select": "id"}, json=columns)
        assert answer.is_success, answer.text
        return answer.json()

    # ── waiting ──

    def wait(self, run_id: str, *statuses: str, seconds=40):
        return self.wait_until(run_id, lambda row: row["status"] in statuses, seconds)

    def wait_until(self, run_id: str, holds, seconds=40):
        """Wait until `holds(row)` is true, and return the row."""
        row = None

        def look() -> bool:
            nonlocal row
            row = self.row(run_id)
            return row is not None and holds(row)

        wait_for(look, seconds, lambda: self.history(run_id))
        return row

    def history(self, run_id: str) -> str:
        """Return the row and its events as text, for error messages."""
        row = {name: value for name, value in (self.row(run_id) or {}).items() if name != "results"}
        return "\n".join(
            [str(row), *(f"{e['attempt']}.{e['seq']} {e['kind']} {e['data']}" for e in self.events(run_id))]
        )

    def wait_epoch(self, run_id: str, epoch: int, attempt=1, seconds=40):
        wait_for(lambda: epoch <= max(self.epochs(run_id).get(attempt, [0])), seconds, lambda: self.history(run_id))

    def wait_phase(self, run_id: str, phase: str, attempt=1, seconds=40):
        wait_for(lambda: phase in self.phases(run_id, attempt), seconds, lambda: self.history(run_id))

    # ── the network ──

    def proxy(self) -> Proxy:
        return Proxy("127.0.0.1", int(self.gateway.url.rpartition(":")[2]))

    def refuse(self, what: str, status: int = 503, body: bytes = b"{}") -> None:
        """Answer every request whose path contains `what` with this status and body, until `gateway.reset()`."""
        kind = "text/html" if body.startswith(b"<") else "application/json"
        self.gateway.faults = lambda _, path: (status, {"Content-Type": kind}, body) if what in path else None

    def lose_answers(self, what: str, times: int) -> list[str]:
        """Drop the next `times` answers to requests whose path contains `what`. Return the list of their paths."""
        lost: list[str] = []

        def lose(_, path):
            if what in path and len(lost) < times:
                lost.append(path)
                return "lose"
            return None

        self.gateway.faults = lose
        return lost

    # ── invariants ──

    def check_published(self, row) -> None:
        """I8: the bucket has each artifact of the row, byte for byte. The model of a completed row is its best.pt."""
        artifacts = row["results"]["artifacts"]
        for artifact in artifacts:
            content = self.storage.get(BUCKET, artifact["path"])
            assert hashlib.sha256(content).hexdigest() == artifact["sha256"], artifact["name"]
            assert len(content) == artifact["bytes"]
        if row["status"] == "completed":
            best = next(artifact for artifact in artifacts if artifact["name"] == "best.pt")
            assert best["path"] == f"training_runs/{row['id']}/{row['attempt']}/best.pt"
            assert best["path"] in row["trained_model_url"]

    def check_epochs(self, run_id: str, *, back: int) -> None:
        """I9: an attempt reports epochs once, in order, and repeats at most `back` epochs of the previous attempt."""
        reported = self.epochs(run_id)
        for epochs in reported.values():
            assert epochs == list(range(epochs[0], epochs[0] + len(epochs)))
        attempts = sorted(self.trained(run_id).items())
        for (_, before), (attempt, after) in pairwise(attempts):
            # the previous attempt was killed before it reported these epochs
            late = [epoch for epoch in reported[attempt] if epoch < after[0]]
            assert max([before[-1], *late]) + 1 - after[0] in range(back + 1), (attempts, reported)

    def check_invariants(self) -> None:
        """Check I1 to I5, I7 and I8 for every run and every recorded change."""
        assert self.stack.rows("select * from faults.stale_events") == []
        for change in self.stack.rows("select path, was, became from faults.changes order by n"):
            check_change(**change)
        for row in self.rows():
            assert row["failures"] <= row["max_attempts"]
            if row["status"] == "completed":
                self.check_published(row)

    def quiet(self) -> bool:
        """Return whether every run has ended (I6)."""
        return all(Status(row["status"]).is_terminal for row in self.rows())


def wait_for(holds, seconds=30.0, describe=lambda: "") -> None:
    """Wait until `holds()` is true, ignoring servers that are down. A timeout error contains `describe()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except (httpx.TransportError, httpx.HTTPStatusError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"timeout after {seconds} s: {describe()}")


@contextmanager
def running_cloud(data: Path):
    with running_stack() as stack:
        buckets = {"datasets": False, BUCKET: False}
        with Bucket(buckets, key=stack.service_key, anon_key=stack.anon_key, tus_host=stack.url) as storage:
            stack.route_storage(storage.url)
            cloud = Cloud(stack, storage, data)
            try:
                yield cloud
            finally:
                cloud.close()
