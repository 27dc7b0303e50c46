"""Uploaded checkpoints are deleted when their run cannot use them any more, and no other object is."""

import os
import time

import pytest
from structlog.testing import capture_logs

from tests.unit.worker.worker_room import BUCKET, Room
from trainer.core.dataset import ObjectRef
from trainer.core.errors import Unavailable
from trainer.core.run_row import RunRow
from trainer.core.stop import StopSignal
from trainer.worker import uploaded_checkpoints

KEEP_SECONDS = 60.0


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


@pytest.fixture
def uploaded(room):
    return room.uploaded(keep_seconds=KEEP_SECONDS)


@pytest.fixture
def bucket(room, uploaded, tmp_path):
    return Bucket(room, uploaded, tmp_path / "state")


class Bucket:
    """Uploads checkpoints, with or without an entry in the list."""

    def __init__(self, room, uploaded, file):
        self.room, self.uploaded, self.file = room, uploaded, file
        file.write_text("state")

    def put(self, key, run_id=None):
        if run_id:
            self.uploaded.note(run_id, key)
        self.room.store.upload(self.file, ObjectRef(bucket=BUCKET, key=key), StopSignal())
        return key

    def checkpoint(self, run_id, epoch, attempt=1, *, is_noted=True):
        key = f"training_runs/{run_id}/{attempt}/checkpoints/epoch-{epoch:05d}-0123abcd.pt"
        return self.put(key, run_id if is_noted else None)

    @property
    def keys(self):
        return {info.ref.key for info in self.room.store.list(ObjectRef(bucket=BUCKET, key=""))}


def rows(*changes):
    """Return the row of a run with changed columns."""
    return lambda run_id: RunRow(id=run_id, **({"status": "running"} | dict(changes)))


def named(key):
    return "checkpoint", {"epoch": 2, "sha256": "0" * 64, "bytes": 5, "key": key}


@pytest.mark.parametrize("status", [None, "completed", "canceled"])
def test_checkpoints_of_ended_or_deleted_run_are_deleted(room, bucket, status):
    first, second = bucket.checkpoint("r", 1), bucket.checkpoint("r", 2)
    kept = {bucket.put("training_runs/r/1/best.pt"), bucket.checkpoint("other", 1)}
    row = status and RunRow(id="r", status=status, checkpoint={"key": second})

    room.uploaded(row_of=lambda _: row).settle("r")

    assert bucket.keys == kept
    assert first not in bucket.keys
    assert [path.name for path in (room.home / "uploaded").iterdir()] == ["other.jsonl"]


@pytest.mark.parametrize("status", ["queued", "running", "canceling", "failed", "a status of tomorrow"])
def test_checkpoint_in_row_is_kept_while_run_may_resume(room, bucket, status):
    bucket.checkpoint("r", 1)
    newest = bucket.checkpoint("r", 2)

    room.uploaded(row_of=rows(("status", status), named(newest))).settle("r")

    assert bucket.keys == {newest}


def test_checkpoints_of_run_taken_over_are_deleted_except_the_one_in_row(room, bucket):
    theirs = bucket.checkpoint("r", 9, attempt=2, is_noted=False)
    bucket.checkpoint("r", 1)
    bucket.checkpoint("r", 2)

    room.uploaded(row_of=rows(named(theirs))).settle("r")

    assert bucket.keys == {theirs}
    run_dir = room.folders.runs / "train_r"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "newest.uploading").touch()
    room.uploaded(row_of=rows(("status", "completed"))).tidy()
    assert not (run_dir / "checkpoints").exists(), "what this host keeps of it goes when it is over"


@pytest.mark.parametrize("checkpoint", [None, [], "training_runs", {"key": None}, {"key": ["x"]}, {}])
def test_row_without_checkpoint_keeps_none(room, bucket, checkpoint):
    bucket.checkpoint("r", 1)

    room.uploaded(row_of=rows(("checkpoint", checkpoint))).settle("r")

    assert bucket.keys == set()


def test_checkpoint_of_failed_run_is_deleted_with_its_run_folder(room, bucket):
    key = bucket.checkpoint("r", 1)
    row_of = rows(("status", "failed"), named(key))

    room.uploaded(row_of=row_of, keep_seconds=60).settle("r")
    assert bucket.keys == {key}

    room.uploaded(row_of=row_of, keep_seconds=0).settle("r")
    assert bucket.keys == set()


def test_run_with_journal_is_skipped(room, bucket):
    """The queue may not have received its newest checkpoint yet."""
    key = bucket.checkpoint("r", 1)
    room.folders.journals.mkdir()
    (room.folders.journals / "r.2.jsonl").touch()

    room.uploaded(row_of=rows(("status", "completed"))).settle("r")

    assert bucket.keys == {key}


def test_active_run_without_journal_is_skipped(room, bucket):
    run_id = room.enqueue()
    lease = room.claim()
    key = bucket.checkpoint(run_id, 1)

    with room.folders.in_use(lease.job):
        room.uploaded(row_of=lambda _: None).settle(run_id)
        assert bucket.keys == {key}
    room.uploaded(row_of=lambda _: None).settle(run_id)
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
def test_no_other_key_is_ever_deleted(room, bucket, key):
    """A row may name any key, and another program may have written the list."""
    deleted = []
    room.store.delete = lambda ref: deleted.append(ref.key)
    bucket.uploaded.note("r", key)
    bucket.uploaded.delete("r", key)
    assert not (room.home / "uploaded").exists()

    mine = "training_runs/r/1/checkpoints/epoch-00001-0123abcd.pt"
    bucket.uploaded.note("r", mine)
    path = room.home / "uploaded" / "r.jsonl"
    path.write_text(path.read_text() + f'{{"bucket": "b", "key": {key!a}, "at": 0}}\n'.replace("'", '"'))
    room.uploaded(row_of=lambda _: None).settle("r")

    assert deleted == [mine]


def test_deleted_checkpoint_is_not_deleted_again(room, bucket):
    key = bucket.checkpoint("r", 1)
    bucket.uploaded.delete("r", key)
    assert bucket.keys == set()

    bucket.checkpoint("r", 1, is_noted=False)
    room.uploaded(row_of=lambda _: None).settle("r")

    assert bucket.keys == {key}


def test_list_survives_incomplete_line(room, bucket):
    bucket.checkpoint("r", 1)
    path = room.home / "uploaded" / "r.jsonl"
    path.write_bytes(path.read_bytes() + b'\x00\x00\xff{"buck')
    bucket.checkpoint("r", 2)

    room.uploaded(row_of=lambda _: None).settle("r")

    assert bucket.keys == set()


def test_unavailable_store_is_not_asked_again_at_once(room, bucket, monkeypatch):
    for name in ("a", "b"):
        bucket.checkpoint(name, 1)
    uploaded = room.uploaded(row_of=lambda _: None)
    delete, tried = room.store.delete, []

    def away(ref):
        tried.append(ref.key)
        raise Unavailable("no answer")

    room.store.delete = away
    with capture_logs() as lines:
        uploaded.tidy()
        uploaded.tidy()
        uploaded.settle("b")
    assert len(tried) == 1
    assert [line["event"] for line in lines] == ["checkpoints not deleted, trying again later"]

    room.store.delete = delete
    now = time.monotonic()
    monkeypatch.setattr(uploaded_checkpoints.time, "monotonic", lambda: now + uploaded_checkpoints.LONGEST_PAUSE)
    uploaded.tidy()
    assert bucket.keys == set()


def test_tidy_checks_limited_number_of_runs_in_turn(room, bucket, monkeypatch):
    monkeypatch.setattr(uploaded_checkpoints, "RUNS_AT_ONCE", 2)
    kept = {name: bucket.checkpoint(name, 1) for name in "abcde"}
    asked = []

    def row_of(run_id):
        asked.append(run_id)
        return rows(named(kept[run_id]))(run_id)

    for name in "abcde":
        os.utime(room.home / "uploaded" / f"{name}.jsonl", (0, ord(name)))
    uploaded = room.uploaded(row_of=row_of)
    for _ in range(3):
        uploaded.tidy()

    assert asked == ["a", "b", "c", "d", "e", "a"]


def test_tidy_without_list_is_not_an_error(room, uploaded):
    uploaded.tidy()
    (room.home / "uploaded").symlink_to("itself")
    uploaded.tidy()
    uploaded.note("r", "training_runs/r/1/checkpoints/epoch-00001-0123abcd.pt")


def test_run_id_is_escaped_in_file_name(room, uploaded):
    uploaded.note("../../x", "training_runs/../../x/1/checkpoints/epoch-00001-0123abcd.pt")

    assert [path.parent for path in room.home.rglob("*.jsonl")] == [room.home / "uploaded"]
