"""A later attempt resumes from a checkpoint, or publishes the model of a finished training."""

import shutil

import pytest

from tests.unit.worker.fakes import Replaced, raising, save_checkpoint
from tests.unit.worker.harness import WorkerFixture, wait_for
from trainer.core.errors import RunFailed, Unavailable
from trainer.core.job import Retry
from trainer.core.stop import StopReason


@pytest.mark.parametrize("where", ["this host", "another host"])
def test_requeued_failed_run_resumes_from_checkpoint(worker, tmp_path, where):
    worker.checkpoint_seconds = 0.05
    run_id = worker.enqueue({"batch": 16})

    def run_out_of_memory(epoch):
        if epoch == 3:
            wait_for(lambda: (worker.row(run_id)["checkpoint"] or {}).get("epoch") == 2)
            raise RunFailed("use a smaller batch")

    worker.trainer.during = run_out_of_memory
    worker.work()
    assert worker.row(run_id)["status"] == "failed"
    if where == "another host":
        (tmp_path / "runs").rename(tmp_path / "runs of the first host")
    worker.update_row(run_id, status="queued", configuration={"epochs": 3, "compute": "cpu", "batch": 4})
    worker.train_normally()
    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert worker.trainer.orders[1].resume.name.endswith("epoch-00002.pt")
    assert worker.trainer.orders[1].plan.batch == 4
    assert worker.row(run_id)["results"]["plan"]["batch"] == 4


def test_next_attempt_resumes_from_local_checkpoint(worker):
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)
    worker.work()
    worker.train_normally()

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert worker.row(run_id)["attempt"] == 2
    resumed = worker.trainer.orders[1].resume
    assert resumed == worker.home / "runs" / f"train_{run_id}-2" / "resumed" / "1-epoch-00002.pt"
    assert worker.trainer.orders[1].run_dir.parent.name == f"train_{run_id}-2"


def test_other_host_resumes_from_uploaded_checkpoint(worker, tmp_path):
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)
    worker.work()
    (tmp_path / "runs").rename(tmp_path / "runs of the first host")
    resumed = []
    worker.trainer.during = lambda epoch: resumed.append(worker.trainer.orders[1].resume.read_bytes())

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert resumed[0] == b"state after 2"


def test_checkpoint_download_is_retried_while_bucket_is_unavailable(worker, tmp_path):
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)
    worker.work()
    other = WorkerFixture(tmp_path)
    shutil.rmtree(other.folders.runs)
    download, outage = other.store.download, raising(*[Unavailable("storage is down")] * 2)

    def download_later(*arguments, **more):
        outage()
        return download(*arguments, **more)

    other.store.download = download_later
    other.work_again()

    assert other.trainer.orders[0].resume.name.endswith("epoch-00002.pt")
    assert other.row(run_id)["status"] == "completed"


def test_next_attempt_of_finished_training_only_publishes(worker):
    """A shutdown interrupted the upload. The next attempt must not train."""
    run_id = worker.enqueue()

    def shut_down(path, ref, stop, **more):
        stop.set(StopReason.SHUTDOWN)  # as at the end of the drain time
        worker.shutdown.set(StopReason.SHUTDOWN)
        raise Unavailable("storage is down")

    worker.work(store=Replaced(worker.store, upload=shut_down))
    assert worker.row(run_id)["status"] == "queued"

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert len(worker.trainer.orders) == 1
    assert worker.row(run_id)["trained_model_url"].endswith(f"{run_id}/2/best.pt")


@pytest.mark.parametrize("content", ["", '{"best": "weights/be', "[]", "{}"])
def test_unreadable_finished_marker_is_ignored(worker, content):
    """F3 F14: after a power cut or a disk error during the write of the marker, the run is trained again."""
    run_id = worker.enqueue()
    lease = worker.claim()
    run_dir = worker.folders.folder(lease.job).path
    run_dir.mkdir(parents=True)
    (run_dir / ".finished.json").write_text(content)

    worker.work(lease)

    assert worker.row(run_id)["status"] == "completed"
    assert len(worker.trainer.orders) == 1


def test_training_resumes_from_previous_checkpoint_if_newest_is_damaged(worker):
    run_id = worker.enqueue()
    job = worker.claim().job
    worker.folders.create(job)
    first = worker.folders.folder(job).output.path
    save_checkpoint(first, 1)
    broken = save_checkpoint(first, 2)
    (first / "checkpoints" / "epoch-00002.pt").write_bytes(b"x" * broken.bytes)
    worker.queue.finish(worker.claim(), Retry(message="lost"), [])
    worker.update_row(run_id, not_before=None)

    worker.work_again()

    assert worker.trainer.orders[0].resume.name == "1-epoch-00001.pt"
    assert worker.warnings(run_id, "checkpoint_broken")
    assert worker.warnings(run_id, "resumed")
