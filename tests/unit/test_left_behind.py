"""What an attempt that does not end the run leaves behind: its events, its checkpoints, its artifacts, an outcome."""

import contextlib
import sqlite3
import time

import pytest

from tests.unit.worker_room import BUCKET, Room
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
    """A store whose uploads fail, at once or after `seconds`."""

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


def test_a_bug_in_an_attempt_ends_it_through_its_journal(room):
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, KeyError("bug"))

    room.work()

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "worker's log" in row["error_message"]
    assert room.kinds(run_id).count("epoch") == 2
    assert isinstance(room.listener.heard[-1], Retry)
    assert not list(room.places.journals.iterdir())
    assert room.slots.free == 1
    assert artifacts(room, run_id).keys() >= TRAINED
    checkpoints = room.home / "runs" / f"train_{run_id}" / "checkpoints"
    assert (checkpoints / "epoch-00002.pt").exists()


def test_a_bug_while_artifacts_are_left_behind_is_survived_too(room):
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, KeyError("bug"))

    room.work(store=Down(room, error=KeyError("another bug")))

    assert (room.row(run_id)["status"], room.row(run_id)["failures"]) == ("queued", 1)
    assert room.kinds(run_id).count("epoch") == 2
    assert not list(room.places.journals.iterdir())


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), KeyError("bug"), MachineFailed("disk full")])
def test_a_view_that_cannot_be_removed_costs_no_model(room, error):
    run_id = room.enqueue()

    def fail(view, *, keep=False):
        raise error

    room.datasets.discard = fail
    room.work()

    assert room.row(run_id)["status"] == "completed"
    assert not list(room.places.journals.iterdir())


def test_an_ended_run_stays_ended_when_its_checkpoints_cannot_be_removed(room):
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
    assert not list(room.places.journals.iterdir())


@pytest.mark.parametrize("error", [ObjectMissing("bucket gone"), MachineFailed("disk full"), OSError(5, "I/O error")])
def test_a_drain_whose_checkpoint_cannot_be_stored_gives_the_run_back(room, error):
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None

    room.work(store=Down(room, error=error))

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert not list(room.places.journals.iterdir())


# ── no journal ──


def test_a_run_without_a_journal_goes_back_with_a_sentence_and_is_not_trained(room):
    run_id = room.enqueue()
    room.places.journals.write_text("in the way")

    room.work()

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "journal" in row["error_message"]
    assert str(room.places.journals) in row["error_message"]
    assert room.trainer.orders == []
    outcome = room.listener.heard[-1]
    assert isinstance(outcome, Retry)
    assert outcome.host_failed
    assert "phase" in room.kinds(run_id)


def test_a_run_whose_folder_cannot_be_made_goes_back_with_a_sentence(room):
    run_id = room.enqueue()
    room.places.runs.write_text("in the way")

    room.work()

    row = room.row(run_id)
    assert row["status"] == "queued"
    assert str(room.places.runs) in row["error_message"]
    assert not list(room.places.journals.iterdir())


def test_a_finished_model_is_published_also_without_a_journal(room):
    run_id = room.enqueue()
    room.drain_seconds = 0.3

    class Closing(Down):
        def upload(self, path, ref, stop, **more):
            room.shutdown.set(StopReason.SHUTDOWN)
            return super().upload(path, ref, stop, **more)

    room.work(store=Closing(room))
    room.places.journals.rename(room.home / "elsewhere")
    room.places.journals.write_text("in the way")

    room.work(room.claim(AGAIN), StopSignal())

    assert room.row(run_id)["status"] == "completed"
    assert len(room.trainer.orders) == 1


# ── artifacts of an attempt that another one follows ──


@pytest.mark.parametrize("error", [MachineFailed("killed"), OSError(28, "No space left"), Unavailable("down")])
def test_an_attempt_that_is_repeated_publishes_what_it_trained(room, error):
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


def test_an_interrupted_attempt_publishes_what_it_trained_after_its_checkpoint(room):
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


def test_a_retry_of_a_run_that_is_being_canceled_lists_its_artifacts(room):
    run_id = room.enqueue()

    def cancel_and_fail(epoch):
        if epoch == 3:
            room.queue.cancel(run_id)
            raise MachineFailed("killed")

    room.trainer.during = cancel_and_fail
    room.work()

    assert room.row(run_id)["status"] == "canceled"
    assert artifacts(room, run_id).keys() >= TRAINED


def test_a_store_that_is_down_is_asked_once_for_an_attempt_that_is_repeated(room):
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
def test_a_store_that_never_answers_holds_up_nobody_for_longer_than_an_upload_may_take(room, interrupted):
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


def test_what_arrived_before_the_time_was_over_is_listed(room):
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


def test_an_attempt_that_trained_nothing_publishes_nothing(room):
    run_id = room.enqueue()
    room.datasets.error = MachineFailed("disk full")

    room.work()

    assert room.row(run_id)["status"] == "queued"
    assert not (room.home / "storage").exists()


@pytest.mark.parametrize("error", [MachineFailed("disk full"), RunFailed("no labels")])
def test_what_an_earlier_attempt_published_stays_listed(room, error):
    """The second attempt fails before it has weights of its own; the first one's are what the user can have."""
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
def test_epochs_are_told_again_when_another_attempt_told_others(room, told_by, told):
    """A later one trained them elsewhere, from an older checkpoint; or an earlier one did, and this one told none of its own."""
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, MachineFailed("killed"))
    room.work()
    with contextlib.closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute("update training_runs set told_epoch = 2, told_attempt = ? where id = ?", [told_by, run_id])
    make_due(room, run_id)

    room.trainer.during = fail_in(9, MachineFailed("never"))
    room.work(room.claim(AGAIN))

    assert (room.trainer.orders[-1].resume.name, room.trainer.orders[-1].told_epoch) == ("epoch-00002.pt", told)


def test_what_an_earlier_attempt_published_stays_listed_when_the_weights_of_the_next_do_not_arrive(room):
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


def test_the_next_attempt_writes_below_a_prefix_of_its_own(room):
    run_id = room.enqueue()
    room.trainer.during = fail_in(3, MachineFailed("killed"))
    room.work()
    before = {i.ref.key: i.etag for i in room.store.list(BUCKET, f"training_runs/{run_id}/1") if "checkpoint" not in i.ref.key}
    make_due(room, run_id)
    room.trainer.during = lambda epoch: None

    room.work(room.claim(AGAIN))

    after = {i.ref.key: i.etag for i in room.store.list(BUCKET, f"training_runs/{run_id}/1") if "checkpoint" not in i.ref.key}
    assert room.row(run_id)["status"] == "completed"
    assert before == after
    assert all(f"/{run_id}/2/" in artifact["path"] for artifact in artifacts(room, run_id).values())


# ── what is fetched ──


def test_one_404_is_not_believed_and_two_are(room):
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
