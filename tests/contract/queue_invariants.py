"""The invariants of a queue, checked between two states of its table."""

from trainer.core.job import (
    TRANSITIONS,
    Canceled,
    Checkpoint,
    Completed,
    Failed,
    Interrupted,
    Lease,
    Retry,
    Status,
)

LIVE = (Status.RUNNING, Status.CANCELING)
OUTCOMES = {
    "completed": Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt"),
    "failed": Failed(message="Diverged."),
    "canceled": Canceled(),
    "retry": Retry(message="Killed."),
    "unhealthy host": Retry(message="The disk is full.", host_failed=True),
    "interrupted": Interrupted(checkpoint=Checkpoint(epoch=1, sha256="ab", bytes=1, key="k")),
}
# possible statuses after an outcome; several if the status depends on the remaining attempts
ENDS_IN = {
    "completed": {Status.COMPLETED},
    "failed": {Status.FAILED},
    "canceled": {Status.CANCELED},
    "retry": {Status.QUEUED, Status.FAILED},
    "unhealthy host": {Status.QUEUED, Status.FAILED},
    "interrupted": {Status.QUEUED},
}


def holds(row, lease):
    """Return True if the lease of the run is valid, or if it has expired and the run has not been claimed since."""
    return row is not None and row["claim_id"] == lease.claim_id and (
        row["status"] in LIVE or (row["status"] == "queued" and row["lease_expires_at"] is not None)
    )  # fmt: skip


def wants_cancel(row):
    return row["status"] == "canceling" or row["cancel_requested"]


def shows(row, lease, outcome):
    """Return whether the row shows this outcome, so that the queue accepts a repeated call."""
    if row is None or row["claim_id"] != lease.claim_id:
        return False
    also = {"retry": {"failed", "canceled"}, "unhealthy host": {"failed", "canceled"}, "interrupted": {"canceled"}}.get(
        outcome, set()
    )
    return row["status"] in {status.value for status in ENDS_IN[outcome]} | also


class Invariants:
    """Checks of the rows before and after a change. The test fills `runs` and `attempts`."""

    def __init__(self, lab):
        self.lab = lab
        self.queue = lab.queue
        self.runs = []  # ids of all rows
        self.attempts = {}  # (run id, attempt) → claim ID

    def assert_untouched(self, before, after, lease, stored):
        """I5: a call without a valid lease changes nothing."""
        assert after == before
        assert self.events_of(lease) == stored

    def edit(self, run_id, **columns):
        self.edit_with(lambda run_id: self.lab.edit(run_id, **columns), run_id)

    def edit_with(self, change, run_id):
        before = self.rows()
        change(run_id)
        self.check(before, self.rows(), by_app=True)

    def check(self, before, after, *, by_app=False):
        claims = [row["claim_id"] for row in after.values() if row["claim_id"]]
        assert len(claims) == len(set(claims)), "I1: two runs must not have the same claim ID"
        assert set(before) == set(after)
        for run_id, new in after.items():
            self.check_row(before[run_id], new, by_app=by_app)

    def check_row(self, old, new, *, by_app):
        was, is_now = Status(old["status"]), Status(new["status"])
        if is_now.is_terminal:
            assert new["lease_expires_at"] is None, "I2: a run that has ended must have no lease"
            assert new["completed_at"] is not None or by_app or was.is_terminal
        if is_now in LIVE:
            assert self.attempts.get((new["id"], new["attempt"]), new["claim_id"]) == new["claim_id"], (
                "I1: the claim ID of an attempt must not change"
            )
        if was.is_terminal:
            assert is_now is was, "I3: the status of a run that has ended must not change"
            assert by_app or new == old, "I3: the row of a run that has ended must not change"
        retaken = new["attempt"] == old["attempt"] + 1  # the lease expired, and the run was claimed in the same call
        assert retaken or new["attempt"] == old["attempt"]
        if is_now is not was:
            through_queue = retaken and Status.QUEUED in TRANSITIONS[was] and is_now is Status.RUNNING
            assert is_now in TRANSITIONS[was] or through_queue, f"I4: {was} → {is_now}"
        elif retaken:
            assert was is Status.RUNNING, f"I4: {was} → queued → running"
        assert new["progress_epoch"] >= old["progress_epoch"]
        self.check_failures(old, new)

    @staticmethod
    def check_failures(old, new):
        progressed = new["progress_epoch"] > old["progress_epoch"]
        if new["status"] in ("queued", "running"):
            assert new["failures"] < new["max_attempts"], "I7: a run without remaining attempts must end"
        assert new["failures"] <= new["max_attempts"], "I7: the number of attempts is limited"
        if progressed:
            assert new["failures"] == 0, "I7: progress must reset the count of lost attempts"
        else:
            revived = old["status"] == "queued" and old["lease_expires_at"] is not None
            assert old["failures"] - revived <= new["failures"] <= old["failures"] + 1

    def rows(self):
        return {run_id: row for run_id, row in self.lab.rows().items() if run_id in self.runs}

    def events_of(self, lease: Lease):
        return self.queue.events(lease.job.id)
