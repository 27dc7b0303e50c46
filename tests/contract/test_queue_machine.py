"""Random sequences of calls, lost workers, cancels, edits and repeated requests; the invariants are checked after every step.

I1 one live lease per run            I2 no lease on a terminal run       I3 a terminal row is final
I4 only the drawn transitions        I5 no stale write lands             I6 every run ends
I7 attempts are bounded, and progress resets the count
"""

import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from queue_adapters import ago

from tests.long import long_except
from trainer.core.job import (
    TRANSITIONS,
    Canceled,
    Checkpoint,
    Completed,
    Failed,
    Interrupted,
    Lease,
    Retry,
    RunEvent,
    Status,
    Verdict,
)
from trainer.core.ports import Worker

EXAMPLES = {"sqlite": 20, "supabase": 8}
STEPS = 30
LIVE = (Status.RUNNING, Status.CANCELING)
OUTCOMES = {
    "completed": Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt"),
    "failed": Failed(message="Diverged."),
    "canceled": Canceled(),
    "retry": Retry(message="Killed."),
    "sick host": Retry(message="The disk is full.", host_failed=True),
    "interrupted": Interrupted(checkpoint=Checkpoint(epoch=1, sha256="ab", bytes=1, key="k")),
}
# status after an outcome of a held run; several if it depends on the attempts left
ENDS_IN = {
    "completed": {Status.COMPLETED},
    "failed": {Status.FAILED},
    "canceled": {Status.CANCELED},
    "retry": {Status.QUEUED, Status.FAILED},
    "sick host": {Status.QUEUED, Status.FAILED},
    "interrupted": {Status.QUEUED},
}
picks = st.integers(min_value=0, max_value=1000)


def holds(row, lease):
    """Return whether the claim holds the row: running, or expired and not claimed again."""
    return row is not None and row["claim_id"] == lease.claim_id and (
        row["status"] in LIVE or (row["status"] == "queued" and row["lease_expires_at"] is not None)
    )  # fmt: skip


def wants_cancel(row):
    return row["status"] == "canceling" or row["cancel_requested"]


def shows(row, lease, ending):
    """Return whether the row shows this outcome, so that a repeated call is accepted."""
    if row is None or row["claim_id"] != lease.claim_id:
        return False
    also = {"retry": {"failed", "canceled"}, "sick host": {"failed", "canceled"}, "interrupted": {"canceled"}}.get(
        ending, set()
    )
    return row["status"] in {status.value for status in ENDS_IN[ending]} | also


class QueueMachine(RuleBasedStateMachine):
    lab = None  # set by the test

    def __init__(self):
        super().__init__()
        self.queue = self.lab.queue
        self.runs = []  # ids of the rows that exist
        self.leases = []  # every lease, including stale ones
        self.sent = []  # every call of a worker, to be repeated
        self.attempts = {}  # (run, attempt) → claim that got it
        self.seq = 0

    @initialize(count=st.integers(min_value=1, max_value=3))
    def begin(self, count):
        for _ in range(count):
            self.runs.append(self.lab.insert(max_attempts=2 if count == 3 else 3))

    # ── what workers do ──

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
    @rule(which=picks, ending=st.sampled_from(sorted(OUTCOMES)))
    def finish(self, which, ending):
        lease = self.leases[which % len(self.leases)]
        self.send("finish", lease, ending, [self.event(lease, "ending")])

    @precondition(lambda self: self.sent)
    @rule(which=picks)
    def the_network_delivers_a_call_again(self, which):
        self.send(*self.sent[which % len(self.sent)], again=True)

    @precondition(lambda self: self.runs)
    @rule(which=picks, worker=st.sampled_from(["w1", "w2", "w3"]), sequels=st.booleans())
    def a_run_changes_hands(self, which, worker, sequels):
        """A lease expires, another worker claims the run, and the first worker returns."""
        self.a_worker_is_silent_for_too_long(which)
        self.claim(worker)
        if sequels and self.leases:
            self.beat(which, None, uploaded=False)

    # ── expiry and edits by the web app ──

    @precondition(lambda self: self.runs)
    @rule(which=picks)
    def a_worker_is_silent_for_too_long(self, which):
        run_id = self.runs[which % len(self.runs)]
        late = self.rows()[run_id]["lease_expires_at"] and ago(1)
        self.edit(run_id, lease_expires_at=late, not_before=None)

    @precondition(lambda self: len(self.runs) < 5)
    @rule(priority=st.integers(min_value=-1, max_value=1))
    def somebody_inserts_a_run(self, priority):
        self.runs.append(self.lab.insert(priority=priority))

    @precondition(lambda self: self.runs)
    @rule(which=picks, wish=st.sampled_from(["cancel", "request_finish"]))
    def somebody_asks_the_queue(self, which, wish):
        self.watched(getattr(self.queue, wish), self.runs[which % len(self.runs)])

    @precondition(lambda self: self.runs)
    @rule(which=picks, how=st.sampled_from(["canceling", "canceled", "flag"]))
    def the_app_cancels_by_itself(self, which, how):
        run_id = self.runs[which % len(self.runs)]
        status = Status(self.rows()[run_id]["status"])
        if how != "flag" and (how == "canceled" or status is not Status.QUEUED):
            self.edit(run_id, status=how, cancel_requested=True)
        elif not status.is_terminal:
            self.edit(run_id, cancel_requested=True)

    @precondition(lambda self: len(self.runs) > 1)
    @rule(which=picks)
    def somebody_deletes_the_run(self, which):
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
        self.judge(before, after)
        known = [row for row in before.values() if row["claim_id"] == claim_id]
        if known and known[0]["status"] in LIVE:
            assert lease.job.id == known[0]["id"]
            assert lease.job.attempt == known[0]["attempt"]
        elif known:
            assert lease is None, "a claim whose run ended takes no second one"
        elif lease is None:
            assert not [row for row in after.values() if row["status"] == "queued" and row["not_before"] is None]
        else:
            row = after[lease.job.id]
            assert (row["status"], row["claim_id"], row["worker_id"]) == ("running", claim_id, worker)
            assert lease.job.attempt == row["attempt"] == before[lease.job.id]["attempt"] + 1
            epochs = [line.data["epoch"] for line in self.events_of(lease) if line.kind == "epoch"]
            assert lease.job.last_reported_epoch == (epochs or [0])[-1], "each epoch is reported once"
            assert (row["id"], row["attempt"]) not in self.attempts, "an attempt's number never repeats"
            self.attempts[row["id"], row["attempt"]] = claim_id
            self.leases.append(lease)

    def send_beat(self, before, lease, progress, events):
        row, told = before.get(lease.job.id), self.events_of(lease)
        verdict = self.queue.beat(lease, progress, events)
        after = self.rows()
        self.judge(before, after)
        if not holds(row, lease):
            assert verdict is Verdict.LOST
            self.assert_untouched(before, after, lease, told)
            return
        expected = Verdict.CANCEL if wants_cancel(row) else Verdict.FINISH if row["finish_requested"] else Verdict.OK
        assert verdict is expected
        assert after[lease.job.id]["results"]["progress"] == progress["progress"]
        assert {(line.attempt, line.seq) for line in self.events_of(lease)} >= {
            (row["attempt"], event.seq) for event in events
        }

    def send_finish(self, before, lease, ending, events):
        row, told = before.get(lease.job.id), self.events_of(lease)
        status = self.queue.finish(lease, OUTCOMES[ending], events)
        after = self.rows()
        self.judge(before, after)
        if not holds(row, lease):
            assert status == (row["status"] if shows(row, lease, ending) else None)
            self.assert_untouched(before, after, lease, told)
            return
        assert status == after[lease.job.id]["status"]
        canceled = wants_cancel(row) and ending in ("retry", "sick host", "interrupted")
        assert after[lease.job.id]["status"] in ({Status.CANCELED} if canceled else ENDS_IN[ending])
        assert after[lease.job.id]["lease_expires_at"] is None
        if after[lease.job.id]["status"] == "queued":
            revived = min(row["failures"], row["status"] == "queued")
            is_lost = ending == "retry" or (ending == "sick host" and row["worker_id"] not in row["host_failures"])
            assert after[lease.job.id]["failures"] == row["failures"] - revived + is_lost, "I7"

    def assert_untouched(self, before, after, lease, told):
        """I5: a call without a valid lease changes nothing."""
        assert after == before
        assert self.events_of(lease) == told

    def edit(self, run_id, **columns):
        self.watched(lambda run_id: self.lab.edit(run_id, **columns), run_id)

    def watched(self, change, run_id):
        before = self.rows()
        change(run_id)
        self.judge(before, self.rows(), by_app=True)

    def judge(self, before, after, *, by_app=False):
        claims = [row["claim_id"] for row in after.values() if row["claim_id"]]
        assert len(claims) == len(set(claims)), "I1: no claim holds two runs"
        assert set(before) == set(after)
        for run_id, new in after.items():
            self.judge_row(before[run_id], new, by_app=by_app)

    def judge_row(self, old, new, *, by_app):
        was, is_now = Status(old["status"]), Status(new["status"])
        if is_now.is_terminal:
            assert new["lease_expires_at"] is None, "I2"
            assert new["completed_at"] is not None or by_app or was.is_terminal
        if is_now in LIVE:
            assert self.attempts.get((new["id"], new["attempt"]), new["claim_id"]) == new["claim_id"], "I1"
        if was.is_terminal:
            assert is_now is was, "I3"
            assert by_app or new == old, "I3"
        retaken = new["attempt"] == old["attempt"] + 1  # settled and claimed in one call
        assert retaken or new["attempt"] == old["attempt"]
        if is_now is not was:
            through_queue = retaken and Status.QUEUED in TRANSITIONS[was] and is_now is Status.RUNNING
            assert is_now in TRANSITIONS[was] or through_queue, f"I4: {was} → {is_now}"
        elif retaken:
            assert was is Status.RUNNING, "I4"
        assert new["progress_epoch"] >= old["progress_epoch"]
        self.judge_failures(old, new)

    @staticmethod
    def judge_failures(old, new):
        progressed = new["progress_epoch"] > old["progress_epoch"]
        if new["status"] in ("queued", "running"):
            assert new["failures"] < new["max_attempts"], "I7: the run would be retried without end"
        assert new["failures"] <= new["max_attempts"], "I7"
        if progressed:
            assert new["failures"] == 0, "I7: progress forgives what was lost before"
        else:
            revived = old["status"] == "queued" and old["lease_expires_at"] is not None
            assert old["failures"] - revived <= new["failures"] <= old["failures"] + 1

    def rows(self):
        return {run_id: row for run_id, row in self.lab.rows().items() if run_id in self.runs}

    def events_of(self, lease: Lease):
        return self.queue.events(lease.job.id)

    def event(self, lease, kind, **data):
        self.seq += 1
        data["claim"] = lease.claim_id
        return RunEvent(seq=self.seq, at="2026-01-02T03:04:05+00:00", kind=kind, data=data)

    def teardown(self):
        try:
            self.every_late_worker_comes_back()
            self.every_event_belongs_to_the_claim_of_its_attempt()
            self.every_run_ends_when_its_workers_are_gone()
        finally:
            for run_id in self.runs:
                self.lab.delete(run_id)

    def every_late_worker_comes_back(self):
        """I3 and I5: after all steps, repeat a heartbeat and every outcome with each lease."""
        for lease in self.leases:
            self.send_beat(self.rows(), lease, {"progress": {"by": "late"}}, [self.event(lease, "phase")])
            for ending in sorted(OUTCOMES):
                if not holds(self.rows().get(lease.job.id), lease):
                    self.send_finish(self.rows(), lease, ending, [self.event(lease, "ending")])

    def every_event_belongs_to_the_claim_of_its_attempt(self):
        for run_id in self.runs:
            for line in self.queue.events(run_id):
                if "claim" in line.data:
                    assert self.attempts[run_id, line.attempt] == line.data["claim"], "I5"

    def every_run_ends_when_its_workers_are_gone(self):
        """I6 and I7: however often runs are claimed, none has more attempts than allowed."""
        for _ in range(3 * len(self.runs) + 2):
            self.send_claim(self.rows(), "w9", str(uuid.uuid4()))
            for row in self.rows().values():
                if not Status(row["status"]).is_terminal:
                    lease = row["lease_expires_at"] and ago(1)
                    self.edit(row["id"], lease_expires_at=lease, not_before=None)
        assert {Status(row["status"]).is_terminal for row in self.rows().values()} <= {True}, "I6"


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
