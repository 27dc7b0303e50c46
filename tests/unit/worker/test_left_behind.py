"""What an attempt that is followed by another one leaves: its events, checkpoints, artifacts and outcome."""

import contextlib
import sqlite3
import time

import pytest

from tests.unit.worker.worker_room import BUCKET, Room
from trainer.core.dataset import ObjectRef
from trainer.core.errors import MachineFailed, ObjectMissing, RunFailed, Unavailable
from trainer.core.job import Retry
from trainer.core.stop import StopReason, StopSignal

AGAIN = "22222222-2222-4222-8222-222222222222"
TRAINED = {"last.pt", "run.log", "manifest.json"}


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


def fail_in(epoch, error):
    def fail(number):
        if number == epoch:
            raise error

    return fail


def artifacts(room, run_id):
    return {artifact["name"]: artifact for artifact in (room.row(run_id)["results"] or {}).get("artifacts", [])}


def make_due(room, run_id):
    with contextlib.closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute("update training_runs set not_before = null where id = ?", [run_id])


class Down:
    """A store whose uploads fail, immediately or after `seconds`."""

    def __init__(self, room, error=None, seconds=0.0):
        self.room, self.error, self.seconds, self.tries = room, error or Unavailable("down"), seconds, 0

    def __getattr__(self, name):
        return getattr(self.room.store, name)

    def upload(self, path, ref, stop, **more):
        self.tries += 1
        if stop.wait(self.seconds):
            stop.raise_if_set()
        raise self.error


# ── a bug of ours ──


def test_bug_in_attempt_writes_outcome_to_journal(room):
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, KeyError("bug"))

    room.work()

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "worker's log" in row["error_message"]
    assert room.kinds(run_id).count("epoch") == 2
    assert isinstance(room.listener.heard[-1], Retry)
    assert not list(room.folders.journals.iterdir())
    assert room.slots.free == 1
    assert artifacts(room, run_id).keys() >= TRAINED
    checkpoints = room.home / "runs" / f"train_{run_id}" / "checkpoints"
    assert (checkpoints / "epoch-00002.pt").exists()


def test_bug_while_publishing_after_bug_is_survived(room):
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, KeyError("bug"))

    room.work(store=Down(room, error=KeyError("another bug")))

    assert (room.row(run_id)["status"], room.row(run_id)["failures"]) == ("queued", 1)
    assert room.kinds(run_id).count("epoch") == 2
    assert not list(room.folders.journals.iterdir())


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), KeyError("bug"), MachineFailed("disk full")])
def test_view_that_cannot_be_removed_does_not_lose_model(room, error):
    run_id = room.enqueue()

    def fail(view, *, keep=False):
        raise error

    room.datasets.discard = fail
    room.work()

    assert room.row(run_id)["status"] == "completed"
    assert not list(room.folders.journals.iterdir())


def test_run_stays_completed_when_checkpoints_cannot_be_removed(room):
    room.checkpoint_seconds = 0.01
    run_id = room.enqueue()
    room.trainer = type(room.trainer)(epochs=2)  # so few that none is removed before the end
    room.trainer.during = lambda epoch: time.sleep(0.1)

    class Stuck:
        def __getattr__(self, name):
            return getattr(room.store, name)

        def delete(self, ref):
            raise KeyError("bug")

    room.work(store=Stuck())

    assert room.row(run_id)["status"] == "completed"
    assert not list(room.folders.journals.iterdir())


@pytest.mark.parametrize("error", [ObjectMissing("bucket gone"), MachineFailed("disk full"), OSError(5, "I/O error")])
def test_shutdown_requeues_run_when_checkpoint_cannot_be_uploaded(room, error):
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None

    room.work(store=Down(room, error=error))

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert not list(room.folders.journals.iterdir())


# ── no journal ──


def test_run_without_journal_is_requeued_with_reason_and_not_trained(room):
    run_id = room.enqueue()
    room.folders.journals.write_text("in the way")

    room.work()

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "journal" in row["error_message"]
    assert str(room.folders.journals) in row["error_message"]
    assert room.trainer.orders == []
    outcome = room.listener.heard[-1]
    assert isinstance(outcome, Retry)
    assert outcome.host_failed
    assert "phase" in room.kinds(run_id)


def test_run_without_folder_is_requeued_with_reason(room):
    run_id = room.enqueue()
    room.folders.runs.write_text("in the way")

    room.work()

    row = room.row(run_id)
    assert row["status"] == "queued"
    assert str(room.folders.runs) in row["error_message"]
    assert not list(room.folders.journals.iterdir())


def test_finished_model_is_published_without_journal(room):
    run_id = room.enqueue()
    room.drain_seconds = 0.3

    class Closing(Down):
        def upload(self, path, ref, stop, **more):
            room.shutdown.set(StopReason.SHUTDOWN)
            return super().upload(path, ref, stop, **more)

    room.work(store=Closing(room))
    room.folders.journals.rename(room.home / "elsewhere")
    room.folders.journals.write_text("in the way")

    room.work(room.claim(AGAIN), StopSignal())

    assert room.row(run_id)["status"] == "completed"
    assert len(room.trainer.orders) == 1


# ── artifacts of an attempt that another one follows ──


@pytest.mark.parametrize("error", [MachineFailed("killed"), OSError(28, "No space left"), Unavailable("down")])
def test_retried_attempt_publishes_its_artifacts(room, error):
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, error)

    room.work()

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert artifacts(room, run_id).keys() >= TRAINED
    assert artifacts(room, run_id)["last.pt"]["path"] == f"training_runs/{run_id}/1/last.pt"
    room.queue.cancel(run_id)
    assert room.row(run_id)["status"] == "canceled"
    assert artifacts(room, run_id).keys() >= TRAINED


def test_interrupted_attempt_publishes_artifacts_after_checkpoint(room):
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None
    order = []

    class Watched:
        def __getattr__(self, name):
            return getattr(room.store, name)

        def upload(self, path, ref, stop, **more):
            order.append(ref.key)
            return room.store.upload(path, ref, stop, **more)

    room.work(store=Watched())

    assert room.row(run_id)["status"] == "queued"
    assert room.row(run_id)["checkpoint"]["epoch"] == 2
    assert "/checkpoints/" in order[0]
    room.queue.cancel(run_id)
    assert artifacts(room, run_id).keys() >= TRAINED


def test_retry_of_canceling_run_lists_artifacts(room):
    run_id = room.enqueue()

    def cancel_and_fail(epoch):
        if epoch == 3:
            room.queue.cancel(run_id)
            raise MachineFailed("killed")

    room.trainer.during = cancel_and_fail
    room.work()

    assert room.row(run_id)["status"] == "canceled"
    assert artifacts(room, run_id).keys() >= TRAINED


def test_unavailable_store_is_tried_once_before_retry(room):
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, MachineFailed("killed"))
    store = Down(room)
    began = time.monotonic()

    room.work(store=store)

    assert time.monotonic() - began < 5
    assert store.tries == 1  # and last.pt is its only file
    assert room.row(run_id)["status"] == "queued"
    assert artifacts(room, run_id) == {}


@pytest.mark.parametrize("interrupted", [False, True])
def test_store_that_never_answers_delays_run_by_upload_time_at_most(room, interrupted):
    room.drain_seconds = 1.0
    run_id = room.enqueue()

    def end(epoch):
        if epoch == 3:
            if not interrupted:
                raise MachineFailed("killed")
            room.shutdown.set(StopReason.SHUTDOWN)

    room.trainer.during = end
    began = time.monotonic()

    room.work(store=Down(room, seconds=60))

    assert time.monotonic() - began < 5
    assert room.row(run_id)["status"] == "queued"


def test_files_uploaded_within_time_limit_are_listed(room):
    room.drain_seconds = 1.0
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, MachineFailed("killed"))

    class Slow(Down):
        def upload(self, path, ref, stop, **more):
            if path.name == "last.pt":
                return room.store.upload(path, ref, stop, **more)
            return super().upload(path, ref, stop, **more)

    def with_a_picture(epoch):
        (room.trainer.orders[-1].run_dir / "labels.jpg").write_text("picture")
        fail_in(3, MachineFailed("killed"))(epoch)

    room.trainer.during = with_a_picture
    room.work(store=Slow(room, seconds=60))

    assert artifacts(room, run_id).keys() == {"last.pt"}


def test_attempt_without_weights_publishes_nothing(room):
    run_id = room.enqueue()
    room.datasets.error = MachineFailed("disk full")

    room.work()

    assert room.row(run_id)["status"] == "queued"
    assert not (room.home / "storage").exists()


@pytest.mark.parametrize("error", [MachineFailed("disk full"), RunFailed("no labels")])
def test_artifacts_of_earlier_attempt_stay_listed(room, error):
    """The second attempt fails before it has weights, so the user gets those of the first."""
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, MachineFailed("killed"))
    room.work()
    first = artifacts(room, run_id)
    make_due(room, run_id)
    room.datasets.error = error

    room.work(room.claim(AGAIN))

    assert artifacts(room, run_id) == first
    assert room.store.stat(ObjectRef(bucket=BUCKET, key=first["last.pt"]["path"])).bytes == first["last.pt"]["bytes"]


@pytest.mark.parametrize(("told_by", "told"), [(1, 2), (2, 0), (0, 0)])
def test_epochs_are_reported_again_after_other_attempt_reported_some(room, told_by, told):
    """A later one trained them on another host, or an earlier one did and this one reported none of its own."""
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, MachineFailed("killed"))
    room.work()
    with contextlib.closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute(
            "update training_runs set last_reported_epoch = 2, last_reported_attempt = ? where id = ?",
            [told_by, run_id],
        )
    make_due(room, run_id)

    room.trainer.during = fail_in(9, MachineFailed("never"))
    room.work(room.claim(AGAIN))

    assert (room.trainer.orders[-1].resume.name, room.trainer.orders[-1].last_reported_epoch) == (
        "epoch-00002.pt",
        told,
    )


def test_artifacts_of_earlier_attempt_stay_listed_without_new_weights(room):
    room.drain_seconds = 1.0
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, MachineFailed("killed"))
    room.work()
    first = artifacts(room, run_id)
    make_due(room, run_id)

    def with_a_picture(epoch):
        (room.trainer.orders[-1].run_dir / "labels.jpg").write_text("picture")
        fail_in(3, MachineFailed("killed"))(epoch)

    class Slow(Down):
        def upload(self, path, ref, stop, **more):
            if path.name == "last.pt":
                return super().upload(path, ref, stop, **more)
            return room.store.upload(path, ref, stop, **more)

    room.trainer.during = with_a_picture
    room.work(room.claim(AGAIN), store=Slow(room, seconds=60))

    assert "last.pt" in first
    assert artifacts(room, run_id) == first


def test_next_attempt_has_prefix_of_its_own(room):
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, MachineFailed("killed"))
    room.work()
    before = {
        i.ref.key: i.etag
        for i in room.store.list(ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1"))
        if "checkpoint" not in i.ref.key
    }
    make_due(room, run_id)
    room.trainer.during = lambda epoch: None

    room.work(room.claim(AGAIN))

    after = {
        i.ref.key: i.etag
        for i in room.store.list(ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1"))
        if "checkpoint" not in i.ref.key
    }
    assert room.row(run_id)["status"] == "completed"
    assert before == after
    assert all(f"/{run_id}/2/" in artifact["path"] for artifact in artifacts(room, run_id).values())


# ── what is fetched ──


def test_missing_object_is_retried_once(room):
    run_id, other = room.enqueue(), room.enqueue()
    prepare = room.datasets.prepare
    missing = [ObjectMissing("there is neither")]

    def prepare_or_miss(*arguments):
        if missing:
            raise missing.pop()
        return prepare(*arguments)

    room.datasets.prepare = prepare_or_miss
    room.work()
    missing.extend([ObjectMissing("there is neither")] * 2)
    room.work(room.claim(AGAIN))

    assert room.row(run_id)["status"] == "completed"
    assert (room.row(other)["status"], room.row(other)["error_message"]) == ("failed", "there is neither")
