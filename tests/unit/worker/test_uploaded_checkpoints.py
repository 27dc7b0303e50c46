"""Uploaded checkpoints are deleted when their run can no longer use them. Other objects are never deleted."""

import os
import time

import pytest
from structlog.testing import capture_logs

from tests.unit.worker.harness import BUCKET
from trainer.core.dataset import ObjectRef
from trainer.core.errors import Unavailable
from trainer.core.run_folder import RunFolder
from trainer.core.run_row import RunRow
from trainer.core.stop import StopSignal
from trainer.worker import uploaded_checkpoints

KEEP_SECONDS = 60.0


@pytest.fixture
def uploaded(worker):
    return worker.uploaded(keep_seconds=KEEP_SECONDS)


@pytest.fixture
def bucket(worker, uploaded, tmp_path):
    return Bucket(worker, uploaded, tmp_path / "state")


class Bucket:
    """A bucket whose checkpoints can be missing in the list of uploaded checkpoints."""

    def __init__(self, worker, uploaded, file):
        self.worker, self.uploaded, self.file = worker, uploaded, file
        file.write_text("state")

    def put(self, key, run_id=None):
        if run_id:
            self.uploaded.note(run_id, key)
        self.worker.store.upload(self.file, ObjectRef(bucket=BUCKET, key=key), StopSignal())
        return key

    def checkpoint(self, run_id, epoch, attempt=1, *, is_noted=True):
        key = f"training_runs/{run_id}/{attempt}/checkpoints/epoch-{epoch:05d}-0123abcd.pt"
        return self.put(key, run_id if is_noted else None)

    @property
    def keys(self):
        return self.worker.stored_keys()


def rows(*changes):
    """Return the row of a run with changed columns."""
    return lambda run_id: RunRow(id=run_id, **({"status": "running"} | dict(changes)))


def named(key):
    return "checkpoint", {"epoch": 2, "sha256": "0" * 64, "bytes": 5, "key": key}


@pytest.mark.parametrize("status", [None, "completed", "canceled"])
def test_checkpoints_of_ended_or_deleted_run_are_deleted(worker, bucket, status):
    first, second = bucket.checkpoint("r", 1), bucket.checkpoint("r", 2)
    kept = {bucket.put("training_runs/r/1/best.pt"), bucket.checkpoint("other", 1)}
    row = status and RunRow(id="r", status=status, checkpoint={"key": second})

    worker.uploaded(row_of=lambda _: row).settle("r")

    assert bucket.keys == kept
    assert first not in bucket.keys
    assert [path.name for path in (worker.home / "uploaded").iterdir()] == ["other.jsonl"]


@pytest.mark.parametrize("status", ["queued", "running", "canceling", "failed", "an unknown status"])
def test_checkpoint_in_row_is_kept_while_run_can_resume(worker, bucket, status):
    bucket.checkpoint("r", 1)
    newest = bucket.checkpoint("r", 2)

    worker.uploaded(row_of=rows(("status", status), named(newest))).settle("r")

    assert bucket.keys == {newest}


def test_only_checkpoint_in_row_is_kept_after_takeover(worker, bucket):
    theirs = bucket.checkpoint("r", 9, attempt=2, is_noted=False)
    bucket.checkpoint("r", 1)
    bucket.checkpoint("r", 2)

    worker.uploaded(row_of=rows(named(theirs))).settle("r")

    assert bucket.keys == {theirs}
    folder = RunFolder.of(worker.folders.runs, "r", 1)
    for checkpoints in (folder.output.checkpoints, folder.resumed):
        checkpoints.mkdir(parents=True)
        (checkpoints / "epoch-00001.pt").touch()
    worker.uploaded(row_of=rows(("status", "completed"))).tidy()
    assert not folder.output.checkpoints.exists(), "local checkpoints are removed when the run has ended"
    assert not folder.resumed.exists()


@pytest.mark.parametrize("checkpoint", [None, [], "training_runs", {"key": None}, {"key": ["x"]}, {}])
def test_all_checkpoints_are_deleted_if_row_has_no_checkpoint(worker, bucket, checkpoint):
    bucket.checkpoint("r", 1)

    worker.uploaded(row_of=rows(("checkpoint", checkpoint))).settle("r")

    assert bucket.keys == set()


def test_checkpoint_of_failed_run_is_deleted_after_keep_seconds(worker, bucket):
    key = bucket.checkpoint("r", 1)
    row_of = rows(("status", "failed"), named(key))

    worker.uploaded(row_of=row_of, keep_seconds=60).settle("r")
    assert bucket.keys == {key}

    worker.uploaded(row_of=row_of, keep_seconds=0).settle("r")
    assert bucket.keys == set()


def test_checkpoints_of_run_with_journal_are_not_deleted(worker, bucket):
    """The newest checkpoint can be missing in the row, because its event is not delivered yet."""
    key = bucket.checkpoint("r", 1)
    worker.folders.journals.mkdir()
    (worker.folders.journals / "r.2.jsonl").touch()

    worker.uploaded(row_of=rows(("status", "completed"))).settle("r")

    assert bucket.keys == {key}


def test_checkpoints_of_active_run_without_journal_are_not_deleted(worker, bucket):
    run_id = worker.enqueue()
    lease = worker.claim()
    key = bucket.checkpoint(run_id, 1)

    with worker.folders.in_use(lease.job):
        worker.uploaded(row_of=lambda _: None).settle(run_id)
        assert bucket.keys == {key}
    worker.uploaded(row_of=lambda _: None).settle(run_id)
    assert bucket.keys == set()


@pytest.mark.parametrize(
    "key",
    [
        "training_runs/other/1/checkpoints/epoch-00001-0123abcd.pt",
        "training_runs/r/1/best.pt",
        "training_runs/r/1/checkpoints/../../../other/1/best.pt",
        "training_runs/r/1/checkpoints/epoch-00001-0123abcd.pt/../../best.pt",
        "training_runs/r/1/checkpoints/epoch-00001-0123abcd.pt\n",
        "datasets/cats/data.yaml",
        "",
    ],
)
def test_objects_that_are_not_checkpoints_of_the_run_are_never_deleted(worker, bucket, key):
    """A row can name any key, and another program can have written the list."""
    deleted = []
    worker.store.delete = lambda ref: deleted.append(ref.key)
    bucket.uploaded.note("r", key)
    bucket.uploaded.delete("r", key)
    assert not (worker.home / "uploaded").exists()

    own_key = "training_runs/r/1/checkpoints/epoch-00001-0123abcd.pt"
    bucket.uploaded.note("r", own_key)
    path = worker.home / "uploaded" / "r.jsonl"
    path.write_text(path.read_text() + f'{{"bucket": "b", "key": {key!a}, "at": 0}}\n'.replace("'", '"'))
    worker.uploaded(row_of=lambda _: None).settle("r")

    assert deleted == [own_key]


def test_deleted_checkpoint_is_not_deleted_again(worker, bucket):
    key = bucket.checkpoint("r", 1)
    bucket.uploaded.delete("r", key)
    assert bucket.keys == set()

    bucket.checkpoint("r", 1, is_noted=False)
    worker.uploaded(row_of=lambda _: None).settle("r")

    assert bucket.keys == {key}


def test_other_checkpoints_are_deleted_if_list_has_incomplete_line(worker, bucket):
    bucket.checkpoint("r", 1)
    path = worker.home / "uploaded" / "r.jsonl"
    path.write_bytes(path.read_bytes() + b'\x00\x00\xff{"buck')
    bucket.checkpoint("r", 2)

    worker.uploaded(row_of=lambda _: None).settle("r")

    assert bucket.keys == set()


def test_deletion_is_retried_after_pause_if_store_is_unavailable(worker, bucket, monkeypatch):
    for name in ("a", "b"):
        bucket.checkpoint(name, 1)
    uploaded = worker.uploaded(row_of=lambda _: None)
    delete, tried = worker.store.delete, []

    def away(ref):
        tried.append(ref.key)
        raise Unavailable("no answer")

    worker.store.delete = away
    with capture_logs() as lines:
        uploaded.tidy()
        uploaded.tidy()
        uploaded.settle("b")
    assert len(tried) == 1
    assert [line["event"] for line in lines] == ["checkpoints not deleted, trying again later"]

    worker.store.delete = delete
    now = time.monotonic()
    monkeypatch.setattr(uploaded_checkpoints.time, "monotonic", lambda: now + uploaded_checkpoints.LONGEST_PAUSE)
    uploaded.tidy()
    assert bucket.keys == set()


def test_each_tidy_checks_the_next_runs_up_to_its_limit(worker, bucket, monkeypatch):
    monkeypatch.setattr(uploaded_checkpoints, "RUNS_AT_ONCE", 2)
    kept = {name: bucket.checkpoint(name, 1) for name in "abcde"}
    asked = []

    def row_of(run_id):
        asked.append(run_id)
        return rows(named(kept[run_id]))(run_id)

    for name in "abcde":
        os.utime(worker.home / "uploaded" / f"{name}.jsonl", (0, ord(name)))
    uploaded = worker.uploaded(row_of=row_of)
    for _ in range(3):
        uploaded.tidy()

    assert asked == ["a", "b", "c", "d", "e", "a"]


def test_tidy_without_list_is_not_an_error(worker, uploaded):
    uploaded.tidy()
    (worker.home / "uploaded").symlink_to("itself")
    uploaded.tidy()
    uploaded.note("r", "training_runs/r/1/checkpoints/epoch-00001-0123abcd.pt")


def test_run_id_is_escaped_in_file_name(worker, uploaded):
    uploaded.note("../../x", "training_runs/../../x/1/checkpoints/epoch-00001-0123abcd.pt")

    assert [path.parent for path in worker.home.rglob("*.jsonl")] == [worker.home / "uploaded"]
