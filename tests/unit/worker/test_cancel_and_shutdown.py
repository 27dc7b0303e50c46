"""A run that is canceled, deleted, finished early or interrupted by a shutdown."""

from tests.unit.worker.fakes import Replaced
from tests.unit.worker.harness import BUCKET, wait_for
from trainer.core.dataset import ObjectRef
from trainer.core.job import Completed
from trainer.core.stop import StopReason


def test_canceled_run_keeps_artifacts_without_model_url(worker):
    run_id = worker.enqueue()

    def cancel(epoch):
        if epoch == 2:
            worker.queue.cancel(run_id)
            worker.trainer.stop.wait(30)

    worker.trainer.during = cancel
    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["error_message"]) == ("canceled", "Canceled by user.")
    assert row["trained_model_url"] is None
    assert {"last.pt", "run.log"} <= worker.artifacts(run_id).keys()


def test_run_canceled_during_upload_lists_best_pt_without_model_url(worker):
    run_id = worker.enqueue()

    def cancel_and_upload(path, ref, *arguments, **more):
        if ref.key.endswith("/best.pt"):
            worker.queue.cancel(run_id)
            worker.trainer.stop.wait(30)
        return worker.store.upload(path, ref, *arguments, **more)

    worker.work(store=Replaced(worker.store, upload=cancel_and_upload))

    row = worker.row(run_id)
    assert row["status"] == "canceled"
    assert row["trained_model_url"] is None
    assert "best.pt" in worker.artifacts(run_id)


def test_cancel_after_publishing_has_no_effect(worker):
    """The model is already published, so the queue accepts `completed` for a canceling run."""
    run_id = worker.enqueue()

    def cancel_and_finish(lease, outcome, events):
        assert isinstance(outcome, Completed)
        worker.queue.cancel(run_id)
        return worker.queue.finish(lease, outcome, events)

    worker.work(queue=Replaced(worker.queue, finish=cancel_and_finish))

    assert worker.row(run_id)["status"] == "completed"
    assert worker.row(run_id)["trained_model_url"]


def test_deleted_row_stops_run_without_publishing(worker):
    run_id = worker.enqueue()

    def delete(epoch):
        if epoch == 2:
            worker.delete_row(run_id)
            worker.trainer.stop.wait(30)

    worker.trainer.during = delete
    worker.work()

    assert worker.row(run_id) is None
    assert not (worker.home / "storage").exists()
    assert not list(worker.folders.journals.iterdir())


def test_shutdown_requeues_run_with_checkpoint(worker):
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)

    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert row["checkpoint"]["epoch"] == 2
    assert worker.store.stat(ObjectRef(bucket=BUCKET, key=row["checkpoint"]["key"])).bytes == row["checkpoint"]["bytes"]


def test_finish_request_reaches_the_training(worker):
    run_id = worker.enqueue()

    def request_finish(epoch):
        worker.queue.request_finish(run_id)
        wait_for(lambda: worker.trainer.stop.reason is StopReason.FINISH)

    worker.trainer.during = request_finish
    worker.work()

    assert worker.row(run_id)["status"] == "completed"
