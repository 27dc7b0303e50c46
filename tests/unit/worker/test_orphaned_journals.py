"""Journals of other processes: damaged journals are renamed, unusable entries are skipped, others are delivered."""

import json
import os
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest

from tests.unit.worker.test_journal import lease
from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Completed, Failed, Retry, Status
from trainer.core.stop import StopReason, StopSignal
from trainer.worker.journal import Journal
from trainer.worker.orphaned_journals import LARGEST, orphaned_journals
from trainer.worker.recovery import OrphanDelivery

ROOT = Path(__file__).parents[3]
LEASE = {"lease": {"run_id": "run-5", "attempt": 1, "claim_id": "c"}}

EVENT = {"event": {"seq": 1, "at": "2026-01-01T00:00:00+00:00", "kind": "epoch", "data": {"epoch": 1}}}

OUTCOME = {"outcome": {"kind": "failed", "message": "no labels", "results": {}}}


class Answers:
    """A queue that records the calls of `finish`. `refusals` are pairs of a run ID and the error for this run."""

    def __init__(self, *refusals):
        self.refusals = list(refusals)
        self.delivered = []

    def beat(self, lease, progress, events):
        raise AssertionError("an outcome with few events needs no heartbeat")

    def finish(self, lease, outcome, events):
        for run_id, error in self.refusals:
            if run_id == lease.job.id:
                raise error
        self.delivered.append((lease.job.id, outcome, [event.seq for event in events]))
        return Status.COMPLETED


def write(folder, name, *lines):
    text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    (folder / f"{name}.jsonl").write_bytes(text + b"\n")


def leave(folder, run_id, outcome=None):
    journal = Journal.create(folder, lease(run_id))
    journal.record("epoch", {"epoch": 1})
    if outcome:
        journal.end(outcome)
    journal.close()


def deliver(queue, folder, stop=None):
    orphans = partial(orphaned_journals, folder, "w", 60)
    OrphanDelivery(queue, orphans, Recovered()).run(stop or StopSignal())


class Recovered:
    def recover(self, journal, shutdown):
        return Retry(message="The worker is gone.")

    def report_end(self, journal, end):
        pass


DAMAGED = {
    "an unknown outcome": [LEASE, EVENT, {"outcome": {"kind": "abandoned", "message": "x"}}],
    "an outcome without its fields": [LEASE, {"outcome": {"kind": "completed"}}],
    "an outcome that is not an object": [LEASE, {"outcome": "completed"}],
    "an outcome with a wrong type": [LEASE, {"outcome": {"kind": "failed", "message": ["x"], "results": {}}}],
    "a lease without its fields": [{"lease": {"run_id": "run-5"}}, OUTCOME],
    "a lease that is not an object": [{"lease": ["run-5", 1, "c"]}, OUTCOME],
    "a lease with a wrong type": [{"lease": {"run_id": 5, "attempt": "one", "claim_id": None}}, OUTCOME],
    "no lease": [EVENT, OUTCOME],
    "a list": [[1, 2, 3]],
    "a number": [7],
    "nothing": [],
    "not UTF-8": [b"\xff\xfe\x00l\x00e\x00a\x00s\x00e"],
    "binary": [os.urandom(5000).replace(b"\n", b"")],
    "100,000 nested lists": [b'{"lease":' + b"[" * 100_000],
    "a number of 10,000 digits": [b'{"lease": ' + b"9" * 10_000 + b"}"],
}

READABLE = {
    "extra fields": (
        [
            {"lease": LEASE["lease"] | {"worker": "w", "version": 9}, "more": 1},
            {"event": EVENT["event"] | {"trace": "x"}},
            {"outcome": OUTCOME["outcome"] | {"code": 7}},
        ],
        [1],
    ),
    "lines of unknown kinds": ([LEASE, {"heartbeat": 3}, EVENT, [1], 7, "x", None, OUTCOME], [1]),
    "an event without its fields": ([LEASE, {"event": {"seq": 1}}, OUTCOME], []),
    "events with wrong types": (
        [
            LEASE,
            {"event": EVENT["event"] | {"seq": "one"}},
            {"event": EVENT["event"] | {"seq": 10**30}},
            {"event": EVENT["event"] | {"seq": -1}},
            {"event": EVENT["event"] | {"data": []}},
            {"event": None},
            EVENT,
            OUTCOME,
        ],
        [1],
    ),
    "damaged lines": ([LEASE, EVENT, b"\xff\xff\xff", b"{" * 100_000, OUTCOME], [1]),
    "a `delivered` line with a wrong type": ([LEASE, EVENT, {"delivered": "all"}, OUTCOME], [1]),
    "events that were all delivered": ([LEASE, EVENT, {"delivered": 1}, OUTCOME], []),
}


@pytest.mark.parametrize("lines", DAMAGED.values(), ids=DAMAGED)
def test_damaged_journal_is_renamed_and_others_are_delivered(tmp_path, lines):
    leave(tmp_path, "run-1", Failed(message="first"))
    write(tmp_path, "run-5.1", *lines)
    leave(tmp_path, "run-9", Completed(results={}, trained_model_url=None))
    content = (tmp_path / "run-5.1.jsonl").read_bytes()
    queue = Answers()

    deliver(queue, tmp_path)

    assert sorted(run_id for run_id, _, _ in queue.delivered) == ["run-1", "run-9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-5.1.unreadable"]
    assert (tmp_path / "run-5.1.unreadable").read_bytes() == content


@pytest.mark.parametrize(("lines", "events"), READABLE.values(), ids=READABLE)
def test_outcome_and_readable_events_of_journal_are_delivered(tmp_path, lines, events):
    write(tmp_path, "run-5.1", *lines)
    queue = Answers()

    deliver(queue, tmp_path)

    assert queue.delivered == [("run-5", Failed(message="no labels"), events)]
    assert list(tmp_path.iterdir()) == []


def test_huge_journal_is_renamed_without_reading_it(tmp_path):
    with (tmp_path / "run-5.1.jsonl").open("wb") as file:
        file.truncate(LARGEST + 1)
    leave(tmp_path, "run-9")
    queue = Answers()
    began = time.monotonic()

    deliver(queue, tmp_path)

    assert [run_id for run_id, _, _ in queue.delivered] == ["run-9"]
    assert time.monotonic() - began < 15
    assert (tmp_path / "run-5.1.unreadable").exists()


def test_long_journal_is_read_quickly(tmp_path):
    events = [{"event": EVENT["event"] | {"seq": number}} for number in range(1, 20_001)]
    write(tmp_path, "run-5.1", LEASE, *events, OUTCOME)
    began = time.monotonic()

    (journal,) = orphaned_journals(tmp_path, "w", 60)

    assert len(journal.pending(10**6)) == 20_000
    assert time.monotonic() - began < 15
    journal.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to("/dev/zero"),
    ],
    ids=["folder", "pipe", "dangling link", "endless device"],
)
def test_entry_that_is_not_a_file_is_skipped(tmp_path, make):
    make(tmp_path / "run-5.1.jsonl")
    leave(tmp_path, "run-9")
    queue = Answers()

    deliver(queue, tmp_path)

    assert [run_id for run_id, _, _ in queue.delivered] == ["run-9"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop capabilities")
def test_journal_of_other_user_is_skipped(tmp_path):
    leave(tmp_path, "run-5")
    (tmp_path / "run-5.1.jsonl").chmod(0)
    leave(tmp_path, "run-9")
    code = f"""
        from tests.unit.worker.test_orphaned_journals import *
        print([journal.lease.job.id for journal in orphaned_journals(Path({str(tmp_path)!r}), "w", 60)])
    """
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", textwrap.dedent(code)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "['run-9']"
    assert (tmp_path / "run-5.1.jsonl").exists()


def test_event_numbers_are_not_reused_after_recovery(tmp_path):
    write(tmp_path, "run-5.1", LEASE, EVENT, {"event": EVENT["event"] | {"seq": 2}}, {"delivered": 2})

    (journal,) = orphaned_journals(tmp_path, "w", 60)
    journal.record("warning", {})

    assert [event.seq for event in journal.pending()] == [3]
    journal.discard()


# ── delivery ──


@pytest.mark.parametrize("error", [Misconfigured("refuses the call"), Unavailable("not now")])
def test_rejected_outcome_does_not_delay_other_outcomes(tmp_path, error):
    for run_id in ("run-1", "run-5", "run-9"):
        leave(tmp_path, run_id)
    queue, stop = Answers(("run-1", error)), StopSignal()
    queue.delivered = StopsAfter(stop, 2)

    deliver(queue, tmp_path, stop)

    assert sorted(run_id for run_id, _, _ in queue.delivered) == ["run-5", "run-9"]
    assert [path.name for path in tmp_path.iterdir()] == ["run-1.1.jsonl"]


class StopsAfter(list):
    """A list that sets `stop` when it has `most` items."""

    def __init__(self, stop, most):
        self.stop, self.most = stop, most

    def append(self, item):
        super().append(item)
        if len(self) == self.most:
            self.stop.set(StopReason.SHUTDOWN)


def test_rejected_outcome_is_delivered_when_queue_accepts_it(tmp_path, monkeypatch):
    leave(tmp_path, "run-1")
    queue = Answers(("run-1", Unavailable("not now")))
    finish = queue.finish

    def finish_later(*arguments):
        try:
            return finish(*arguments)
        finally:
            queue.refusals.clear()

    monkeypatch.setattr(queue, "finish", finish_later)

    deliver(queue, tmp_path)

    assert [(run_id, outcome.kind, events) for run_id, outcome, events in queue.delivered] == [("run-1", "retry", [1])]
    assert list(tmp_path.iterdir()) == []


def test_journal_is_renamed_if_its_delivery_raises_unexpected_error(tmp_path):
    for run_id in ("run-1", "run-9"):
        leave(tmp_path, run_id)
    queue = Answers(("run-1", TypeError("a bug")))

    deliver(queue, tmp_path)

    assert [run_id for run_id, outcome, _ in queue.delivered if isinstance(outcome, Retry)] == ["run-9"]
    assert [path.name for path in tmp_path.iterdir()] == ["run-1.1.unreadable"]


def test_temporary_journal_file_is_removed_after_a_day(tmp_path):
    for name, age in (("old.new", 90_000), ("young.new", 3600)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)

    assert list(orphaned_journals(tmp_path, "w", 60)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["young.new"]
