"""The journal of an attempt, and what a new process reads from it after a crash."""

import json
import os
import subprocess
import sys

import pytest

from trainer.core.job import Checkpoint, Completed, Failed, Interrupted, Job, Lease, Retry, RunRequest
from trainer.worker.journal import Journal
from trainer.worker.orphaned_journals import orphaned_journals


def lease(run_id="run-1", attempt=1):
    job = Job(id=run_id, request=RunRequest(data_yaml="x"), attempt=attempt)
    return Lease(job=job, claim_id=f"claim-{attempt}", worker_id="w", seconds=60, trusted_until=0)


def left(folder):
    return list(orphaned_journals(folder, "w", 60))


def test_events_are_pending_until_they_are_delivered(tmp_path):
    journal = Journal.create(tmp_path, lease())
    for number in range(5):
        journal.record("epoch", {"epoch": number})

    first = journal.pending(limit=3)
    journal.delivered(first)

    assert [event.seq for event in first] == [1, 2, 3]
    assert [event.seq for event in journal.pending()] == [4, 5]
    journal.discard()


def test_journal_of_crashed_process_is_read_completely(tmp_path):
    journal = Journal.create(tmp_path, lease(attempt=2))
    journal.record("phase", {"phase": "training"})
    journal.record("epoch", {"epoch": 1})
    journal.delivered(journal.pending(limit=1))
    outcome = Completed(results={"mAP": 0.5}, trained_model_url="file:///m")
    journal.end(outcome)
    journal.close()

    [again] = left(tmp_path)

    assert again.outcome == outcome
    assert [(event.seq, event.kind) for event in again.pending()] == [(2, "epoch")]
    assert (again.lease.job.id, again.lease.job.attempt, again.lease.claim_id) == ("run-1", 2, "claim-2")
    again.discard()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "outcome",
    [
        Failed(message="no labels"),
        Retry(message="disk full", results={"run_dir": "/r"}),
        Interrupted(checkpoint=Checkpoint(epoch=3, sha256="ab", bytes=5, key="k")),
        Interrupted(checkpoint=None),
        Interrupted(checkpoint=None, results={"artifacts": [{"name": "last.pt"}]}),
    ],
)
def test_every_outcome_is_read_back(tmp_path, outcome):
    journal = Journal.create(tmp_path, lease())
    journal.end(outcome)
    journal.close()

    [again] = left(tmp_path)

    assert again.outcome == outcome
    again.discard()


def test_event_numbers_continue_after_recovery(tmp_path):
    journal = Journal.create(tmp_path, lease())
    journal.record("epoch", {})
    journal.close()

    [again] = left(tmp_path)
    again.record("epoch", {})

    assert [event.seq for event in again.pending()] == [1, 2]
    again.discard()


def test_journal_of_running_process_is_not_read(tmp_path):
    journal = Journal.create(tmp_path, lease())

    assert left(tmp_path) == []
    journal.discard()


def test_incomplete_last_line_of_journal_is_skipped(tmp_path):
    journal = Journal.create(tmp_path, lease())
    journal.record("epoch", {"epoch": 1})
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"outcome": {"kind": "compl')

    [again] = left(tmp_path)

    assert again.outcome is None
    assert len(again.pending()) == 1
    again.discard()


def test_unreadable_journal_is_renamed_and_not_deleted(tmp_path):
    (tmp_path / "x.1.jsonl").write_text("not json\n")

    assert left(tmp_path) == []
    assert (tmp_path / "x.1.unreadable").read_text() == "not json\n"


def test_outcome_is_synced_before_end_returns(tmp_path):
    """A process that is killed right after `end` returned must leave the outcome on disk."""
    code = f"""
import os, pathlib, sys
sys.path[:0] = {sys.path!r}
from tests.unit.worker.test_journal import lease
from trainer.core.job import Failed
from trainer.worker.journal import Journal
journal = Journal.create(pathlib.Path({str(tmp_path)!r}), lease())
journal.record("epoch", {{}})
journal.end(Failed(message="x"))
os._exit(9)
"""
    root = os.getcwd()

    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 9

    [again] = left(tmp_path)
    assert again.outcome == Failed(message="x")
    again.discard()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_journal_on_full_disk_raises_no_error(tmp_path):
    journal = Journal(open("/dev/full", "ab", buffering=0), tmp_path / "gone", lease())

    journal.record("epoch", {"epoch": 1})
    journal.end(Failed(message="x"))

    assert [json.loads(json.dumps(event.data)) for event in journal.pending()] == [{"epoch": 1}]
    assert journal.outcome == Failed(message="x")
    journal.close()


def test_outcome_after_incomplete_line_is_read(tmp_path):
    journal = Journal.create(tmp_path, lease())
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"event": {"seq": 1, "at": "2\n')
        file.write('{"outcome": {"kind": "failed", "message": "x", "results": {}}}\n')

    [again] = left(tmp_path)

    assert again.outcome == Failed(message="x")
    again.discard()
