"""Workers with valid and expired leases, and users who cancel and delete runs, use one database at the same time.

A trigger records every change of every row. The test checks the invariants in these changes.
"""

import random
import threading
import time
import uuid
from itertools import pairwise

import pytest

from trainer.core.job import TRANSITIONS, Canceled, Completed, Failed, Interrupted, Retry, RunEvent, Status
from trainer.core.ports import Worker

SECONDS = 6.0
RECORD = """
  create table chaos (n bigserial, run_id uuid, was jsonb, became jsonb);
  create function chaos_record() returns trigger language plpgsql security definer as $$
  begin
    insert into public.chaos (run_id, was, became) values (new.id, to_jsonb(old), to_jsonb(new));
    return null;
  end $$;
  create trigger chaos_record after update on training_runs for each row execute function chaos_record();
"""
# a change that a user with an outdated page can make; the next claim cancels the run
FROM_A_STALE_PAGE = (Status.QUEUED, Status.CANCELING)
FORGET = "drop trigger chaos_record on training_runs; drop function chaos_record; drop table chaos;"
OUTCOMES = (
    Completed(results={"mAP": 0.5}, trained_model_url="u"), Failed(message="no"), Retry(message="later"), Canceled(),
    Interrupted(checkpoint=None),
)  # fmt: skip


@pytest.fixture
def recorded(supabase_lab):
    supabase_lab.stack.sql(RECORD)
    yield supabase_lab
    supabase_lab.stack.sql(FORGET)


class ChaoticWorker:
    """A worker that claims with short leases and also uses expired leases."""

    def __init__(self, lab, name: str, accepted: list[tuple[str, str]]) -> None:
        self.queue = lab.another()
        self.name = name
        self.accepted = accepted  # (claim ID, run ID) of every accepted outcome
        self.random = random.Random(name)
        self.leases = []
        self.seq = 0

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            self.random.choice([self.claim, self.beat, self.beat, self.finish, self.pause])()

    def claim(self) -> None:
        claim_id = str(uuid.uuid4())
        leases = [
            self.queue.claim(Worker(id=self.name), claim_id, self.random.choice([0.02, 0.1, 5.0]))
            for _ in range(self.random.choice([1, 1, 2]))
        ]
        held = [lease for lease in leases if lease]
        for lease in held[:-1]:
            if lease.job.id != held[-1].job.id:
                # another worker has claimed the first run in the meantime, or a user has deleted it
                row = self.queue.get(lease.job.id)
                assert row is None or row.attempt != lease.job.attempt
        self.leases += held[-1:]

    def beat(self) -> None:
        if self.leases:
            self.seq += 1
            event = RunEvent(seq=self.seq, at="2026-01-02T03:04:05+00:00", kind="epoch", data={"epoch": self.seq})
            self.queue.beat(self.random.choice(self.leases), {"by": self.name}, [event])

    def finish(self) -> None:
        if self.leases:
            lease, outcome = self.random.choice(self.leases), self.random.choice(OUTCOMES)
            if self.queue.finish(lease, outcome, []) is not None and isinstance(outcome, Completed):
                self.accepted.append((lease.claim_id, lease.job.id))

    def pause(self) -> None:
        time.sleep(self.random.choice([0.01, 0.05]))


def users(lab, until: float) -> None:
    """Enqueue runs, cancel them in each way that the web app can, even after they have ended, and delete them."""
    dice = random.Random("users")
    ids = []
    while time.monotonic() < until:
        if len(ids) < 400:
            ids.append(lab.insert(max_attempts=dice.choice([1, 2, 3])))
        run_id = dice.choice(ids)
        change = dice.choice([
            {"status": "canceling", "cancel_requested": True},
            {"status": "canceled", "cancel_requested": True},
            {"cancel_requested": True},
            {"not_before": None},  # no backoff, to save time
            {"not_before": None},
        ])  # fmt: skip
        if dice.random() < 0.05:
            lab.delete(run_id)
            ids.remove(run_id)
        else:
            lab.edit(run_id, **change)
        time.sleep(0.005)


def test_invariants_hold_under_concurrent_random_calls(recorded):
    accepted = []
    until = time.monotonic() + SECONDS
    workers = [ChaoticWorker(recorded, f"w{n}", accepted) for n in range(6)]
    failures = []

    def guarded(work, *arguments) -> None:
        try:
            work(*arguments)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(worker.run, until)) for worker in workers]
    threads.append(threading.Thread(target=guarded, args=(users, recorded, until)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert "deadlock" not in (recorded.stack.postgres.folder / "postgres.log").read_text()

    changes = recorded.stack.rows("select run_id, was, became from chaos order by n")
    assert len(changes) > 300
    seen = set()
    for change in changes:
        check_change(change["was"], change["became"])
        seen.add((change["was"]["status"], change["became"]["status"]))
    # without these kinds of changes, the test would check too little
    assert {("running", "queued"), ("queued", "running"), ("running", "completed"), ("queued", "canceled")} <= seen
    check_runs(changes)
    check_accepted(recorded, accepted)

    # all workers have stopped, so `settle_training_runs` requeues or ends every run with a lease
    recorded.stack.sql(
        "update training_runs set lease_expires_at = now() - interval '1 s' where lease_expires_at is not null"
    )
    recorded.stack.sql("select settle_training_runs()")
    assert recorded.stack.sql("select count(*) from training_runs where status in ('running', 'canceling')") == "0"


def check_change(was: dict, became: dict) -> None:
    before, after = Status(was["status"]), Status(became["status"])
    assert after is before or after in TRANSITIONS[before] or (before, after) == FROM_A_STALE_PAGE
    assert became["attempt"] - was["attempt"] in (0, 1)
    if became["claim_id"] != was["claim_id"]:
        assert (before, after) == (Status.QUEUED, Status.RUNNING)
        assert became["attempt"] == was["attempt"] + 1
    if after.is_terminal:
        assert became["lease_expires_at"] is None
    if before.is_terminal:
        kept = ("status", "results", "trained_model_url", "error_message", "claim_id", "completed_at")
        assert {name: was[name] for name in kept} == {name: became[name] for name in kept}
    assert 0 <= became["failures"] <= became["max_attempts"]
    assert became["progress_epoch"] >= was["progress_epoch"]


def check_runs(changes: list[dict]) -> None:
    """Check that each claim of a run has a new claim ID, and that the attempt number never decreases."""
    claims: dict[str, list[str]] = {}
    for change in changes:
        held = claims.setdefault(change["run_id"], [])
        if change["became"]["claim_id"] and (not held or held[-1] != change["became"]["claim_id"]):
            held.append(change["became"]["claim_id"])
    for run_id, held in claims.items():
        assert len(held) == len(set(held))
        rows = [change["became"]["attempt"] for change in changes if change["run_id"] == run_id]
        assert all(earlier <= later for earlier, later in pairwise(rows))


def check_accepted(lab, accepted: list[tuple[str, str]]) -> None:
    """Check that every accepted completed run is unchanged, unless a user deleted it."""
    assert accepted
    left = {row["id"]: row for row in lab.stack.rows("select id, status, claim_id, results from training_runs")}
    for claim_id, run_id in accepted:
        if run_id in left:
            assert (left[run_id]["status"], left[run_id]["claim_id"]) == ("completed", claim_id)
            assert left[run_id]["results"]["mAP"] == 0.5
