"""A Supabase project under test: real PostgreSQL and PostgREST, a stand-in for Storage, and a record of every change.

What must hold whatever happens is checked from that record (`check_invariants`), so that each test of the matrix gets
I1, I2, I3, I4, I5, I7 and I8 for nothing and asserts what is its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx

from tests.faults.proxy import Proxy
from tests.storage_server import StorageServer
from tests.supabase_stack import running_stack
from trainer.core.job import TRANSITIONS, Status

BUCKET = "training-artifacts"
LASTING = ("status", "claim_id", "attempt", "results", "trained_model_url", "error_message", "completed_at")
RECORD = """
create schema faults;
-- `path` is that of the request: a worker calls functions, the web app writes into the table
create table faults.changes (
  n bigserial, at timestamptz default clock_timestamp(), path text default current_setting('request.path', true),
  run_id uuid, was jsonb, became jsonb);
create table faults.stale_events (run_id uuid, attempt integer, event jsonb, row jsonb);
create function faults.note_change() returns trigger language plpgsql security definer as $$
begin
  -- without what no honest app would have written, and no client could read
  insert into faults.changes (run_id, was, became) values (new.id,
    to_jsonb(old) - array['run_name', 'base_model', 'data_yaml', 'configuration'],
    to_jsonb(new) - array['run_name', 'base_model', 'data_yaml', 'configuration']);
  return null;
end $$;
-- every change but those that a beat makes of itself; of an ended run every one
create trigger faults_change after update on training_runs for each row when (
  old.status in ('completed', 'failed', 'canceled')
  or (old.status, old.claim_id, old.attempt, old.failures, old.error_message, old.trained_model_url, old.checkpoint)
    is distinct from
    (new.status, new.claim_id, new.attempt, new.failures, new.error_message, new.trained_model_url, new.checkpoint)
) execute function faults.note_change();
create function faults.note_event() returns trigger language plpgsql security definer as $$
declare
  run public.training_runs;
begin
  select * into run from public.training_runs where id = new.run_id;
  if new.seq >= 1000000 then  -- the queue's own word, with which it may end a run
    return null;
  end if;
  if run.attempt <> new.attempt or run.status in ('completed', 'failed', 'canceled') then
    insert into faults.stale_events values (new.run_id, new.attempt, to_jsonb(new), to_jsonb(run));
  end if;
  return null;
end $$;
create trigger faults_event after insert on training_run_events for each row execute function faults.note_event();
-- the real pauses (10 s, 20 s, …) have their own tests
create or replace function trainer.back_off(failures integer) returns interval
language sql immutable parallel safe set search_path = '' as $$ select 0.3 * interval '1 second' $$;
"""


class Bucket(StorageServer):
    """Remembers when each object was written."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.writes = []  # (time.time(), bucket, key)

    def commit(self, bucket, key, file, mime):
        stored = super().commit(bucket, key, file, mime)
        self.writes.append((time.time(), bucket, key))
        return stored

    def stored(self, bucket) -> set[str]:
        """The keys of all objects."""
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
        # as text, because a row that is poison may hold what Python cannot read
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

    def cancel(self, run_id: str) -> None:
        self._app.post("/rpc/cancel_training_run", json={"run_id": run_id}).raise_for_status()

    def edit(self, run_id: str, *, if_status: str | None = None, **columns) -> None:
        """Change columns of the row; with `if_status` only if it has that status still."""
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
        """How many epochs all runs have told."""
        where = {"kind": "eq.epoch", "select": "seq", "limit": "1"}
        answer = self._app.get("/training_run_events", params=where, headers={"Prefer": "count=exact"})
        return int(answer.raise_for_status().headers["Content-Range"].rpartition("/")[2])

    def epochs(self, run_id: str) -> dict[int, list[int]]:
        """The epochs that each attempt finished, in the order in which it told them."""
        found: dict[int, list[int]] = {}
        for event in self.events(run_id, "epoch"):
            found.setdefault(event["attempt"], []).append(event["data"]["epoch"])
        return found

    def trained(self, run_id: str) -> dict[int, list[int]]:
        """The epochs that each attempt trained itself. Those that it tells before it trains, another attempt trained."""
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
        """The row, once it is as it should be."""
        row = None

        def look() -> bool:
            nonlocal row
            row = self.row(run_id)
            return row is not None and holds(row)

        wait_for(look, seconds, lambda: self.story(run_id))
        return row

    def story(self, run_id: str) -> str:
        """For the message of a test that fails."""
        row = {name: value for name, value in (self.row(run_id) or {}).items() if name != "results"}
        return "\n".join(
            [str(row), *(f"{e['attempt']}.{e['seq']} {e['kind']} {e['data']}" for e in self.events(run_id))]
        )

    def wait_epoch(self, run_id: str, epoch: int, attempt=1, seconds=40):
        wait_for(lambda: epoch <= max(self.epochs(run_id).get(attempt, [0])), seconds, lambda: self.story(run_id))

    def wait_phase(self, run_id: str, phase: str, attempt=1, seconds=40):
        wait_for(lambda: phase in self.phases(run_id, attempt), seconds, lambda: self.story(run_id))

    # ── the network ──

    def proxy(self) -> Proxy:
        return Proxy("127.0.0.1", int(self.gateway.url.rpartition(":")[2]))

    def refuse(self, what: str, status: int = 503, body: bytes = b"{}") -> None:
        """Every request whose path holds `what` is answered so, until `gateway.reset()`."""
        kind = "text/html" if body.startswith(b"<") else "application/json"
        self.gateway.faults = lambda _, path: (status, {"Content-Type": kind}, body) if what in path else None

    def lose_answers(self, what: str, times: int) -> list[str]:
        """The next answers to requests whose path holds `what` are thrown away; the list grows with each."""
        lost: list[str] = []

        def lose(_, path):
            if what in path and len(lost) < times:
                lost.append(path)
                return "lose"
            return None

        self.gateway.faults = lose
        return lost

    # ── what must hold ──

    def check_published(self, row) -> None:
        """I8: what the row lists is in the bucket, byte for byte, and the model is among it."""
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
        """I9: an attempt tells each epoch once and in order, and begins at most `back` epochs before the last one's end."""
        reported = self.epochs(run_id)
        for epochs in reported.values():
            assert epochs == list(range(epochs[0], epochs[0] + len(epochs)))
        attempts = sorted(self.trained(run_id).items())
        for (_, before), (attempt, after) in pairwise(attempts):
            late = [epoch for epoch in reported[attempt] if epoch < after[0]]  # trained before a kill, reported after it
            assert max([before[-1], *late]) + 1 - after[0] in range(back + 1), (attempts, reported)

    def check_invariants(self) -> None:
        """I1 to I5, I7 and I8, for every run and everything that was ever written."""
        assert self.stack.rows("select * from faults.stale_events") == []
        for change in self.stack.rows("select path, was, became from faults.changes order by n"):
            check_change(**change)
        for row in self.rows():
            assert row["failures"] <= row["max_attempts"]
            if row["status"] == "completed":
                self.check_published(row)

    def quiet(self) -> bool:
        """I6: whether every row has ended."""
        return all(Status(row["status"]).is_terminal for row in self.rows())


def check_change(path, was, became) -> None:
    before, after = Status(was["status"]), Status(became["status"])
    if path == "/training_runs" and before.is_terminal and after is Status.QUEUED:
        # somebody queued an ended run again
        left = {name: became[name] for name in ("finish_requested", "cancel_requested", "failures") if became[name]}
        assert not left, f"queued again with what belonged to its end: {left}"
        return
    assert after is before or after in TRANSITIONS[before], f"I4: {before} → {after}"
    if before.is_terminal:
        assert {n: was[n] for n in LASTING} == {n: became[n] for n in LASTING}, "I3"
    if after.is_terminal:
        assert became["lease_expires_at"] is None, "I2"
    if became["claim_id"] != was["claim_id"] or became["attempt"] != was["attempt"]:
        assert (before, after) == (Status.QUEUED, Status.RUNNING), "I1"
        assert became["attempt"] == was["attempt"] + 1, "I1"
    assert became["failures"] <= became["max_attempts"], "I7"


def wait_for(holds, seconds=30.0, told=lambda: "") -> None:
    """Until `holds()`; a server that is down meanwhile is no answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except (httpx.TransportError, httpx.HTTPStatusError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {told()}")


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


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
