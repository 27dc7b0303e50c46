"""The artifacts of attempts that are interrupted or retried."""

import time

import pytest

from tests.unit.worker.fakes import Down, Replaced
from tests.unit.worker.harness import BUCKET
from trainer.core.dataset import ObjectRef
from trainer.core.errors import MachineFailed, RunFailed, Unavailable
from trainer.core.stop import StopReason

TRAINED = {"last.pt", "run.log", "manifest.json"}


@pytest.mark.parametrize("error", [MachineFailed("killed"), OSError(28, "No space left"), Unavailable("down")])
def test_retried_attempt_publishes_its_artifacts(worker, error):
    run_id = worker.enqueue()
    worker.fail_in(3, error)

    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert worker.artifacts(run_id).keys() >= TRAINED
    assert worker.artifacts(run_id)["last.pt"]["path"] == f"training_runs/{run_id}/1/last.pt"
    worker.queue.cancel(run_id)
    assert worker.row(run_id)["status"] == "canceled"
    assert worker.artifacts(run_id).keys() >= TRAINED


def test_interrupted_attempt_publishes_artifacts_after_checkpoint(worker):
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)
    order = []

    def upload(path, ref, *arguments, **more):
        order.append(ref.key)
        return worker.store.upload(path, ref, *arguments, **more)

    worker.work(store=Replaced(worker.store, upload=upload))

    assert worker.row(run_id)["status"] == "queued"
    assert worker.row(run_id)["checkpoint"]["epoch"] == 2
    assert "/checkpoints/" in order[0]
    worker.queue.cancel(run_id)
    assert worker.artifacts(run_id).keys() >= TRAINED


def test_run_canceled_before_retryable_error_lists_artifacts(worker):
    run_id = worker.enqueue()

    def cancel_and_fail(epoch):
        if epoch == 3:
            worker.queue.cancel(run_id)
            raise MachineFailed("killed")

    worker.trainer.during = cancel_and_fail
    worker.work()

    assert worker.row(run_id)["status"] == "canceled"
    assert worker.artifacts(run_id).keys() >= TRAINED


def test_unavailable_store_is_tried_once_before_requeue(worker):
    run_id = worker.enqueue()
    worker.fail_in(3, MachineFailed("killed"))
    store = Down(worker)

    worker.work(store=store)

    assert store.tries == 1  # only last.pt
    assert worker.row(run_id)["status"] == "queued"
    assert worker.artifacts(run_id) == {}


@pytest.mark.parametrize("interrupted", [False, True])
def test_unresponsive_store_delays_requeue_by_at_most_drain_time(worker, interrupted):
    worker.drain_seconds = 0.3
    run_id = worker.enqueue()

    def end(epoch):
        if epoch == 3:
            if not interrupted:
                raise MachineFailed("killed")
            worker.shutdown.set(StopReason.SHUTDOWN)

    worker.trainer.during = end
    began = time.monotonic()

    worker.work(store=Down(worker, seconds=60))

    assert time.monotonic() - began < 15
    assert worker.row(run_id)["status"] == "queued"


def test_row_lists_files_that_are_uploaded_within_time_limit(worker):
    worker.drain_seconds = 0.3
    run_id = worker.enqueue()
    worker.fail_in(3, MachineFailed("killed"))

    class Slow(Down):
        def upload(self, path, ref, stop, **more):
            if ref.key.endswith("/last.pt"):
                return worker.store.upload(path, ref, stop, **more)
            return super().upload(path, ref, stop, **more)

    def with_a_picture(epoch):
        (worker.trainer.orders[-1].run_dir / "labels.jpg").write_text("picture")
        if epoch == 3:
            raise MachineFailed("killed")

    worker.trainer.during = with_a_picture
    worker.work(store=Slow(worker, seconds=60))

    assert worker.artifacts(run_id).keys() == {"last.pt"}


def test_attempt_without_weights_publishes_nothing(worker):
    run_id = worker.enqueue()
    worker.datasets.error = MachineFailed("disk full")

    worker.work()

    assert worker.row(run_id)["status"] == "queued"
    assert not (worker.home / "storage").exists()


@pytest.mark.parametrize("error", [MachineFailed("disk full"), RunFailed("no labels")])
def test_artifacts_of_earlier_attempt_stay_listed(worker, error):
    """The second attempt fails before it has weights, so the user gets the weights of the first attempt."""
    run_id = worker.enqueue()
    worker.fail_in(3, MachineFailed("killed"))
    worker.work()
    first = worker.artifacts(run_id)
    worker.update_row(run_id, not_before=None)
    worker.datasets.error = error

    worker.work_again()

    assert worker.artifacts(run_id) == first
    assert worker.store.stat(ObjectRef(bucket=BUCKET, key=first["last.pt"]["path"])).bytes == first["last.pt"]["bytes"]


@pytest.mark.parametrize(("reported_by", "last_epoch"), [(1, 2), (2, 0), (0, 0)])
def test_last_reported_epoch_is_used_only_if_attempt_of_checkpoint_reported_it(worker, reported_by, last_epoch):
    """Attempt 1 saved the checkpoint. If another attempt reported the last epoch, all epochs are reported again."""
    run_id = worker.enqueue()
    worker.fail_in(3, MachineFailed("killed"))
    worker.work()
    worker.update_row(run_id, last_reported_epoch=2, last_reported_attempt=reported_by, not_before=None)

    worker.train_normally()
    worker.work_again()

    assert (worker.trainer.orders[-1].resume.name, worker.trainer.orders[-1].last_reported_epoch) == (
        "1-epoch-00002.pt",
        last_epoch,
    )


def test_artifacts_of_earlier_attempt_stay_listed_without_new_weights(worker):
    worker.drain_seconds = 0.3
    run_id = worker.enqueue()
    worker.fail_in(3, MachineFailed("killed"))
    worker.work()
    first = worker.artifacts(run_id)
    worker.update_row(run_id, not_before=None)

    def with_a_picture(epoch):
        (worker.trainer.orders[-1].run_dir / "labels.jpg").write_text("picture")
        if epoch == 3:
            raise MachineFailed("killed")

    class Slow(Down):
        def upload(self, path, ref, stop, **more):
            if ref.key.endswith("/last.pt"):
                return super().upload(path, ref, stop, **more)
            return worker.store.upload(path, ref, stop, **more)

    worker.trainer.during = with_a_picture
    worker.work_again(store=Slow(worker, seconds=60))

    assert "last.pt" in first
    assert worker.artifacts(run_id) == first


def published(worker, run_id):
    """Return the objects of the first attempt with their ETags, without checkpoints."""
    listed = worker.store.list(ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1"))
    return {info.ref.key: info.etag for info in listed if "checkpoint" not in info.ref.key}


def test_next_attempt_publishes_under_its_own_prefix(worker):
    run_id = worker.enqueue()
    worker.fail_in(3, MachineFailed("killed"))
    worker.work()
    before = published(worker, run_id)
    worker.update_row(run_id, not_before=None)
    worker.train_normally()

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert before == published(worker, run_id)
    assert all(f"/{run_id}/2/" in artifact["path"] for artifact in worker.artifacts(run_id).values())
