"""Random sequences of calls, expired leases, cancels, edits and repeated calls. Each step checks the invariants:

I1 A run has at most one valid lease.
I2 A run that has ended has no lease.
I3 After a run has ended, no call of a worker changes its row.
I4 The status changes only along documented transitions.
I5 A call with a lost lease changes nothing.
I6 Every run ends.
I7 The number of attempts is limited. Progress resets the count of lost attempts.
"""

import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from queue_adapters import ago
from queue_invariants import ENDS_IN, LIVE, OUTCOMES, Invariants, holds, shows, wants_cancel

from tests.long import long_except
from trainer.core.job import (
    RunEvent,
    Status,
    Verdict,
)
from trainer.core.ports import Worker

EXAMPLES = {"sqlite": 20, "supabase": 8}
STEPS = 30
picks = st.integers(min_value=0, max_value=1000)


class QueueMachine(Invariants, RuleBasedStateMachine):
    lab = None  # set by the test

    def __init__(self):
        Invariants.__init__(self, self.lab)
        RuleBasedStateMachine.__init__(self)
        self.leases = []  # every lease, including stale ones
        self.sent = []  # every call of a worker, so that it can be repeated
        self.seq = 0

    @initialize(count=st.integers(min_value=1, max_value=3))
    def insert_first_runs(self, count):
        for _ in range(count):
            self.runs.append(self.lab.insert(max_attempts=2 if count == 3 else 3))

    # ── steps of workers ──

    @rule(worker=st.sampled_from(["w1", "w2", "w3"]))
    def claim(self, worker):
        self.send("claim", worker, str(uuid.uuid4()))

    @precondition(lambda self: self.leases)
    @rule(which=picks, epoch=st.none() | st.integers(min_value=1, max_value=6), uploaded=st.booleans())
    def beat(self, which, epoch, uploaded):
        lease = self.leases[which % len(self.leases)]
        events = [self.event(lease, "phase")]
        if epoch is not None:
            key = f"{lease.job.attempt}/{epoch}.pt" if uploaded else None
            events.append(self.event(lease, "epoch", epoch=epoch))
            events.append(self.event(lease, "checkpoint", epoch=epoch, sha256="ab", bytes=1, key=key))
        self.send("beat", lease, {"progress": {"by": lease.claim_id, "seq": self.seq}}, events)

    @precondition(lambda self: self.leases)
    @rule(which=picks, outcome=st.sampled_from(sorted(OUTCOMES)))
    def finish(self, which, outcome):
        lease = self.leases[which % len(self.leases)]
        self.send("finish", lease, outcome, [self.event(lease, "phase")])

    @precondition(lambda self: self.sent)
    @rule(which=picks)
    def repeat_earlier_call(self, which):
        self.send(*self.sent[which % len(self.sent)], again=True)

    @precondition(lambda self: self.runs)
    @rule(which=picks, worker=st.sampled_from(["w1", "w2", "w3"]), returns=st.booleans())
    def take_over_run(self, which, worker, returns):
        """Let a lease expire and let `worker` claim a run. If `returns`, send a heartbeat with one of the leases."""
        self.let_lease_expire(which)
        self.claim(worker)
        if returns and self.leases:
            self.beat(which, None, uploaded=False)

    # ── expiry and edits by the web app ──

    @precondition(lambda self: self.runs)
    @rule(which=picks)
    def let_lease_expire(self, which):
        run_id = self.runs[which % len(self.runs)]
        late = self.rows()[run_id]["lease_expires_at"] and ago(1)
        self.edit(run_id, lease_expires_at=late, not_before=None)

    @precondition(lambda self: len(self.runs) < 5)
    @rule(priority=st.integers(min_value=-1, max_value=1))
    def insert_run(self, priority):
        self.runs.append(self.lab.insert(priority=priority))

    @precondition(lambda self: self.runs)
    @rule(which=picks, request=st.sampled_from(["cancel", "request_finish"]))
    def cancel_or_request_finish(self, which, request):
        self.edit_with(getattr(self.queue, request), self.runs[which % len(self.runs)])

    @precondition(lambda self: self.runs)
    @rule(which=picks, how=st.sampled_from(["canceling", "canceled", "flag"]))
    def app_cancels_run(self, which, how):
        run_id = self.runs[which % len(self.runs)]
        status = Status(self.rows()[run_id]["status"])
        if how != "flag" and (how == "canceled" or status is not Status.QUEUED):
            self.edit(run_id, status=how, cancel_requested=True)
        elif not status.is_terminal:
            self.edit(run_id, cancel_requested=True)

    @precondition(lambda self: len(self.runs) > 1)
    @rule(which=picks)
    def delete_run(self, which):
        self.lab.delete(self.runs.pop(which % len(self.runs)))

    # ── checks after each step ──

    def send(self, name, *sent, again=False):
        before = self.rows()
        getattr(self, f"send_{name}")(before, *sent)
        if not again:
            self.sent.append((name, *sent))

    def send_claim(self, before, worker, claim_id):
        lease = self.queue.claim(Worker(id=worker), claim_id, 600)
        after = self.rows()
        self.check(before, after)
        known = [row for row in before.values() if row["claim_id"] == claim_id]
        if known and known[0]["status"] in LIVE:
            assert lease.job.id == known[0]["id"]
            assert lease.job.attempt == known[0]["attempt"]
        elif known:
            assert lease is None, "a repeated claim must not get a second run"
        elif lease is None:
            assert not [row for row in after.values() if row["status"] == "queued" and row["not_before"] is None]
        else:
            row = after[lease.job.id]
            assert (row["status"], row["claim_id"], row["worker_id"]) == ("running", claim_id, worker)
            assert lease.job.attempt == row["attempt"] == before[lease.job.id]["attempt"] + 1
            epochs = [line.data["epoch"] for line in self.events_of(lease) if line.kind == "epoch"]
            assert lease.job.last_reported_epoch == (epochs or [0])[-1], "the lease must have the last stored epoch"
            assert (row["id"], row["attempt"]) not in self.attempts, "attempt numbers must be unique"
            self.attempts[row["id"], row["attempt"]] = claim_id
            self.leases.append(lease)

    def send_beat(self, before, lease, progress, events):
        row, stored = before.get(lease.job.id), self.events_of(lease)
        verdict = self.queue.beat(lease, progress, events)
        after = self.rows()
        self.check(before, after)
        if not holds(row, lease):
            assert verdict is Verdict.LOST
            self.assert_untouched(before, after, lease, stored)
            return
        expected = Verdict.CANCEL if wants_cancel(row) else Verdict.FINISH if row["finish_requested"] else Verdict.OK
        assert verdict is expected
        assert after[lease.job.id]["results"]["progress"] == progress["progress"]
        assert {(line.attempt, line.seq) for line in self.events_of(lease)} >= {
            (row["attempt"], event.seq) for event in events
        }

    def send_finish(self, before, lease, outcome, events):
        row, stored = before.get(lease.job.id), self.events_of(lease)
        status = self.queue.finish(lease, OUTCOMES[outcome], events)
        after = self.rows()
        self.check(before, after)
        if not holds(row, lease):
            assert status == (row["status"] if shows(row, lease, outcome) else None)
            self.assert_untouched(before, after, lease, stored)
            return
        assert status == after[lease.job.id]["status"]
        canceled = wants_cancel(row) and outcome in ("retry", "unhealthy host", "interrupted")
        assert after[lease.job.id]["status"] in ({Status.CANCELED} if canceled else ENDS_IN[outcome])
        assert after[lease.job.id]["lease_expires_at"] is None
        if after[lease.job.id]["status"] == "queued":
            revived = min(row["failures"], row["status"] == "queued")
            is_lost = outcome == "retry" or (
                outcome == "unhealthy host" and row["worker_id"] not in row["host_failures"]
            )
            assert after[lease.job.id]["failures"] == row["failures"] - revived + is_lost, (
                "I7: wrong count of lost attempts"
            )

    def event(self, lease, kind, **data):
        self.seq += 1
        data["claim"] = lease.claim_id
        return RunEvent(seq=self.seq, at="2026-01-02T03:04:05+00:00", kind=kind, data=data)

    def teardown(self):
        try:
            self.send_late_calls_of_every_lease()
            self.check_that_events_belong_to_the_claim_of_their_attempt()
            self.check_that_every_run_ends_without_its_workers()
        finally:
            for run_id in self.runs:
                self.lab.delete(run_id)

    def send_late_calls_of_every_lease(self):
        """I3 and I5: after all steps, send a heartbeat with each lease, and every outcome with each lost lease."""
        for lease in self.leases:
            self.send_beat(self.rows(), lease, {"progress": {"by": "late"}}, [self.event(lease, "phase")])
            for outcome in sorted(OUTCOMES):
                if not holds(self.rows().get(lease.job.id), lease):
                    self.send_finish(self.rows(), lease, outcome, [self.event(lease, "phase")])

    def check_that_events_belong_to_the_claim_of_their_attempt(self):
        for run_id in self.runs:
            for line in self.queue.events(run_id):
                if "claim" in line.data:
                    assert self.attempts[run_id, line.attempt] == line.data["claim"], (
                        "I5: an event must come from the claim of its attempt"
                    )

    def check_that_every_run_ends_without_its_workers(self):
        """I6 and I7: if every lease expires, every run ends after a limited number of claims."""
        for _ in range(3 * len(self.runs) + 2):
            self.send_claim(self.rows(), "w9", str(uuid.uuid4()))
            for row in self.rows().values():
                if not Status(row["status"]).is_terminal:
                    lease = row["lease_expires_at"] and ago(1)
                    self.edit(row["id"], lease_expires_at=lease, not_before=None)
        assert {Status(row["status"]).is_terminal for row in self.rows().values()} <= {True}, "I6: every run must end"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("times", long_except([1, 4], 1))
def test_invariants_hold_for_random_sequences_of_calls(queue_lab, request, times):
    machine = type("Machine", (QueueMachine,), {"lab": queue_lab})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES[request.node.callspec.params["queue_lab"]] * times,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
