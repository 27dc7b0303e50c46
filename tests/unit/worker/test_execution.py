"""One run, from lease to outcome: every way in which it can end, and the files that stay."""

import hashlib
import json
import os
import shutil
import threading
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.unit.worker.harness import (
    BUCKET,
    NEXT_CLAIM,
    FakeTrainer,
    Replaced,
    WorkerFixture,
    raising,
    save_checkpoint,
    wait_for,
)
from trainer.core.dataset import ObjectRef
from trainer.core.errors import DatasetError, MachineFailed, Misconfigured, RunFailed, Unavailable
from trainer.core.job import Completed, Job, Retry, RunRequest, Verdict
from trainer.core.retry import RetryPolicy
from trainer.core.run_folder import RunFolder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.worker import fetching
from trainer.worker import lease as lease_module
from trainer.worker.checkpoint_uploads import CheckpointUploads
from trainer.worker.journal import Journal
from trainer.worker.lease import Heartbeat, LeaseTimes, kept_alive
from trainer.worker.liveness import Liveness
from trainer.worker.run_context import RunContext


def test_run_completes_with_results(worker):
    run_id = worker.enqueue()

    worker.work()

    row = worker.row(run_id)
    results = row["results"]
    assert row["status"] == "completed"
    assert (results["mAP"], results["metrics"]) == (0.5, {"metrics/mAP50(B)": 0.7, "epoch": 3})
    assert results["progress"]["percent"] == 100.0
    assert results["run_dir"] == str(worker.home / "runs" / f"train_{run_id}")
    assert results["plan"]["epochs"] == 3
    assert results["dataset"] == {"images": {"train": 4}}
    assert row["error_message"] is None


def test_row_names_artifacts_with_correct_checksums(worker, tmp_path):
    run_id = worker.enqueue()
    worker.work()
    row = worker.row(run_id)
    artifacts = {artifact["name"]: artifact for artifact in row["results"]["artifacts"]}

    assert row["trained_model_url"] == artifacts["best.pt"]["url"]
    assert {"best.pt", "last.pt", "results.csv", "run.log", "manifest.json"} <= set(artifacts)
    for name, artifact in artifacts.items():
        assert artifact["path"] == f"training_runs/{run_id}/1/{name}"
        copy = tmp_path / "copy"
        worker.store.download(ObjectRef(bucket=BUCKET, key=artifact["path"]), copy, StopSignal())
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == artifact["sha256"]
        assert copy.stat().st_size == artifact["bytes"]


def test_manifest_lists_every_other_artifact(worker, tmp_path):
    run_id = worker.enqueue()
    worker.work()
    worker.store.download(
        ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1/manifest.json"), tmp_path / "m", StopSignal(),
    )  # fmt: skip

    manifest = json.loads((tmp_path / "m").read_text())

    published = {artifact["name"] for artifact in worker.row(run_id)["results"]["artifacts"]}
    assert {artifact["name"] for artifact in manifest["artifacts"]} == published - {"manifest.json"}


def test_events_are_stored_once_and_in_order(worker):
    run_id = worker.enqueue()

    worker.work()

    kinds = worker.kinds(run_id)
    assert kinds.count("epoch") == 3
    assert kinds.count("checkpoint") == 3
    assert kinds.index("phase") < kinds.index("epoch")
    assert [event.seq for event in worker.queue.events(run_id)] == list(range(1, len(kinds) + 1))


def test_invalid_request_fails_with_every_problem(worker):
    run_id = worker.enqueue({"epochs": 0, "batch": "many"})

    worker.work()

    row = worker.row(run_id)
    assert row["status"] == "failed"
    assert "epochs" in row["error_message"]
    assert "batch" in row["error_message"]
    assert worker.trainer.orders == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DatasetError("no labels"), "failed"),
        (MachineFailed("disk full"), "queued"),
        (Unavailable("storage is down"), "queued"),
        (Misconfigured("no such bucket"), "queued"),
        (OSError(28, "No space left on device"), "queued"),
    ],
)
def test_kind_of_error_decides_whether_run_is_retried(worker, monkeypatch, error, status):
    monkeypatch.setattr(fetching, "FETCH_RETRIES", RetryPolicy(tries=1))
    run_id = worker.enqueue()
    worker.datasets.error = error

    worker.work()

    row = worker.row(run_id)
    assert row["status"] == status
    assert str(error).split("] ")[-1].split(":")[0] in row["error_message"]


def test_dataset_download_is_retried_during_outage(worker):
    run_id = worker.enqueue()
    prepare, outage = worker.datasets.prepare, raising(*[Unavailable("storage is down")] * 3)

    def prepare_later(*arguments):
        outage()
        return prepare(*arguments)

    worker.datasets.prepare = prepare_later
    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert worker.warnings(run_id, "fetch_waits") == ["Download failed, retrying: storage is down"]
    assert worker.kinds(run_id).count("warning") == 1


def test_failed_training_publishes_its_log(worker):
    run_id = worker.enqueue()

    worker.fail_in(2, RunFailed("the loss is not a number"))
    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["error_message"]) == ("failed", "the loss is not a number")
    assert row["trained_model_url"] is None
    assert "run.log" in worker.artifacts(run_id)
    assert row["results"]["metrics"]["epoch"] == 1


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
    assert worker.trainer.orders[1].resume.name == "epoch-00002.pt"
    assert worker.trainer.orders[1].plan.batch == 4
    assert worker.row(run_id)["results"]["plan"]["batch"] == 4


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


def test_cancel_during_upload_keeps_the_model(worker):
    run_id = worker.enqueue()

    def cancel_and_upload(path, *arguments, **more):
        if path.name == "best.pt":
            worker.queue.cancel(run_id)
            worker.trainer.stop.wait(30)
        return worker.store.upload(path, *arguments, **more)

    worker.work(store=Replaced(worker.store, upload=cancel_and_upload))

    row = worker.row(run_id)
    assert row["status"] == "canceled"
    assert row["trained_model_url"] is None
    assert "best.pt" in worker.artifacts(run_id)


def test_cancel_after_publishing_has_no_effect(worker):
    """The model is published already, so the queue accepts `completed` for a canceling run."""
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


def test_next_attempt_resumes_from_local_checkpoint(worker):
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)
    worker.work()
    worker.train_normally()

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert worker.row(run_id)["attempt"] == 2
    resumed = worker.trainer.orders[1].resume
    assert resumed == worker.home / "runs" / f"train_{run_id}" / "checkpoints" / "epoch-00002.pt"
    assert worker.trainer.orders[1].run_dir.name == f"train_{run_id}-2"


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


def test_unavailable_bucket_is_waited_for_when_it_has_checkpoint(worker, tmp_path):
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

    assert other.trainer.orders[0].resume.name == "epoch-00002.pt"
    assert other.row(run_id)["status"] == "completed"


def test_finished_training_is_only_published_again(worker):
    """A shutdown interrupted the upload. The next attempt must not train."""
    run_id = worker.enqueue()

    def shut_down(path, ref, stop, **more):
        stop.set(StopReason.SHUTDOWN)  # the drain time is over
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
    """F3 F14: after a power cut or a disk error during the write, the run trains again and does not fail."""
    run_id = worker.enqueue()
    lease = worker.claim()
    run_dir = worker.folders.folder(lease.job).path
    run_dir.mkdir(parents=True)
    (run_dir / ".finished.json").write_text(content)

    worker.work(lease)

    assert worker.row(run_id)["status"] == "completed"
    assert len(worker.trainer.orders) == 1


def test_upload_is_retried_until_bucket_exists(worker):
    run_id = worker.enqueue()
    fail = raising(Misconfigured("bucket missing"))

    def upload(*arguments, **more):
        fail()
        return worker.store.upload(*arguments, **more)

    worker.work(store=Replaced(worker.store, upload=upload))

    assert worker.row(run_id)["status"] == "completed"
    assert worker.warnings(run_id, "upload_waits") == ["Upload failed, retrying: bucket missing"]


def test_run_taken_over_by_other_worker_is_not_changed(worker):
    """The lease expired and another worker claimed the run: this one publishes nothing and leaves the row unchanged."""
    worker.lease_seconds = 0.1
    run_id = worker.enqueue()
    lease, claimed = worker.claim(), []

    def beat_too_late(*arguments):
        wait_for(lambda: claimed.append(worker.claim(NEXT_CLAIM, worker="other")) or claimed[-1])
        return worker.queue.beat(*arguments)

    worker.trainer.during = lambda epoch: worker.trainer.stop.wait(30)
    worker.work(lease, queue=Replaced(worker.queue, beat=beat_too_late))

    assert claimed[-1].job.attempt == 2
    row = worker.row(run_id)
    assert (row["status"], row["worker_id"]) == ("running", "other")
    assert "trained_model_url" not in row or row["trained_model_url"] is None


def test_lease_counts_from_before_heartbeat_was_sent(worker, tmp_path, monkeypatch):
    """F4 F7: the answer was slow. The lease starts when the database receives the request."""
    now, heartbeats, confirming = 1000.0, [], threading.Event()
    monkeypatch.setattr(lease_module, "boottime", lambda: now)

    class Stop(StopSignal):
        def wait(self, seconds=None):
            confirming.set()
            return super().wait(seconds)

    def beat(*_):
        nonlocal now
        heartbeats.append(now)
        if len(heartbeats) == 1:
            now += 40  # until the answer
            return Verdict.OK
        confirming.wait(30)
        return Verdict.LOST

    worker.enqueue()
    stop, times = Stop(), LeaseTimes(beat=0, progress=1e9, lease=50)
    journal = Journal.create(tmp_path / "journal", worker.claim())
    heartbeat = Heartbeat(SimpleNamespace(beat=beat), journal, stop, times, dict, Liveness())
    with closing(journal), kept_alive(heartbeat, "slow"):
        wait_for(lambda: len(heartbeats) == 2)
        now += 20  # 60 s after the first heartbeat was sent, 20 s after its answer
        with pytest.raises(Stopped):
            heartbeat.confirm(stop)


def test_slot_is_free_during_upload(worker):
    worker.enqueue()
    free = []

    def upload(*arguments, **more):
        free.append(worker.slots.free)
        return worker.store.upload(*arguments, **more)

    worker.work(store=Replaced(worker.store, upload=upload))

    assert set(free) == {1}


def test_checkpoints_are_uploaded_at_intervals_and_two_are_kept(worker):
    worker.checkpoint_seconds = 0.01
    run_id = worker.enqueue()
    worker.trainer = FakeTrainer(epochs=6)
    seen = set()

    def wait_for_upload(epoch):
        if epoch == 6:
            worker.shutdown.set(StopReason.SHUTDOWN)
        elif epoch > 1:
            wait_for(lambda: (worker.row(run_id)["checkpoint"] or {}).get("epoch") == epoch - 1)
            seen.update(worker.stored_keys(f"training_runs/{run_id}/1/checkpoints"))

    worker.trainer.during = wait_for_upload
    worker.work()

    keys = worker.stored_keys(f"training_runs/{run_id}/1/checkpoints")
    assert len(keys) == 2
    assert len(seen) >= 4
    assert worker.row(run_id)["checkpoint"]["key"] in keys


def uploads_of(run_dir, worker, store, confirm=lambda stop: None):
    job = Job(id="r", request=RunRequest(data_yaml=None), attempt=1)
    events = SimpleNamespace(record=print, is_delivered=lambda key: True)
    heartbeat = SimpleNamespace(confirm=confirm)
    run = RunContext(job=job, folder=RunFolder(run_dir), stop=StopSignal(), events=events, heartbeat=heartbeat)
    return CheckpointUploads(worker.run_host(store=store).services, run)


@pytest.mark.parametrize("digest", ["../../../other/1", "", "A" * 64, "a" * 64 + "\n", "a" * 63])
def test_checkpoint_with_invalid_sha256_is_not_uploaded(tmp_path, worker, digest):
    uploads = uploads_of(tmp_path, worker, worker.store)

    uploads.note(replace(save_checkpoint(tmp_path, 1), sha256=digest))

    assert uploads.send_newest(StopSignal()) is None


def test_only_checkpoint_files_of_the_run_are_uploaded(tmp_path, worker):
    """The training process reports the path, so it could name another file of the host or a link to one."""
    (tmp_path / "secret.pt").write_text("a key of the service")
    uploads = uploads_of(tmp_path / "run", worker, worker.store)
    saved = save_checkpoint(tmp_path / "run", 1)
    (tmp_path / "run" / "checkpoints" / "link.pt").symlink_to(tmp_path / "secret.pt")
    (tmp_path / "run" / "checkpoints" / "folder").mkdir()
    os.mkfifo(tmp_path / "run" / "checkpoints" / "pipe")

    for name in ("../../secret.pt", str(tmp_path / "secret.pt"), "link.pt", "folder", "pipe", "..", ""):
        uploads.note(replace(saved, path=f"{tmp_path}/run/checkpoints/{name}"))
        with pytest.raises(OSError):
            uploads.send_newest(StopSignal())

    uploads.note(saved)
    assert uploads.send_newest(StopSignal()).epoch == 1
    assert worker.stored_keys() == {f"training_runs/r/1/checkpoints/epoch-00001-{saved.sha256[:8]}.pt"}
    assert not list((tmp_path / "run" / "checkpoints").glob("*.uploading"))


def test_training_process_cannot_choose_checkpoint_of_row(worker):
    """Another host resumes only from a checkpoint that the service itself uploaded."""
    real = worker.trainer.train

    def train(order, stop, on_event, on_line):
        def add_key(event):
            on_event(replace(event, key="training_runs/other/1/best.pt") if event.kind == "checkpoint" else event)

        return real(order, stop, add_key, on_line)

    worker.trainer.train = train
    worker.shut_down_in(epoch=3)
    run_id = worker.enqueue()
    worker.work()

    assert worker.row(run_id)["checkpoint"]["key"].startswith(f"training_runs/{run_id}/1/checkpoints/")
    assert {event.data.get("key") for event in worker.queue.events(run_id) if event.kind == "checkpoint"} == {
        None, worker.row(run_id)["checkpoint"]["key"],
    }  # fmt: skip


def test_checkpoint_is_not_uploaded_after_lease_is_lost(tmp_path, worker):
    """F4: the queue answers the heartbeat before the upload with LOST."""

    def confirm(stop):
        raise Stopped(StopReason.LOST)

    sent = []
    store = SimpleNamespace(upload=lambda *arguments, **more: sent.append(arguments))
    uploads = uploads_of(tmp_path, worker, store, confirm)
    uploads.note(save_checkpoint(tmp_path, 1))

    with pytest.raises(Stopped):
        uploads.send_newest(StopSignal())

    assert sent == []


def test_checkpoints_of_completed_run_are_removed(worker):
    """The checkpoints of all attempts are removed, so that a requeued run starts from scratch."""
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)
    worker.work()
    assert worker.stored_keys(f"training_runs/{run_id}/1/checkpoints")
    worker.train_normally()

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert not [key for key in worker.stored_keys(f"training_runs/{run_id}") if "checkpoints" in key]
    for folder in worker.folders.attempts(run_id):
        assert not folder.checkpoints.exists()
        assert not folder.finished_marker.exists()


def test_checkpoint_that_row_may_name_is_not_deleted(worker):
    """During an outage of the queue, another host looks for the last checkpoint that the queue received."""
    worker.checkpoint_seconds = 0.01
    run_id = worker.enqueue()
    worker.trainer = FakeTrainer(epochs=6)
    known, keys = [], set()

    def beat(*arguments):
        if known:
            raise Unavailable("down")
        verdict = worker.queue.beat(*arguments)
        known.extend([checkpoint] if (checkpoint := worker.row(run_id)["checkpoint"]) else [])
        return verdict

    def wait_for_upload(epoch):
        if epoch > 1:
            wait_for(lambda: known and f"epoch-{epoch - 1:05d}" in str(worker.stored_keys(f"training_runs/{run_id}")))
            keys.update(worker.stored_keys(f"training_runs/{run_id}/1/checkpoints"))
        if epoch == 6:
            assert known[0]["key"] in keys == worker.stored_keys(f"training_runs/{run_id}/1/checkpoints")

    worker.trainer.during = wait_for_upload
    worker.work(queue=Replaced(worker.queue, beat=beat))

    assert worker.row(run_id)["status"] == "completed"
    assert len(keys) == 5


def test_dataset_view_is_removed_after_run(worker):
    worker.enqueue()

    worker.work()

    assert list(worker.folders.views.iterdir()) == []


def test_outcome_is_delivered_after_outage(worker):
    run_id = worker.enqueue()
    fail = raising(Unavailable("down"), Unavailable("down"))

    def finish(*arguments):
        fail()
        return worker.queue.finish(*arguments)

    worker.work(queue=Replaced(worker.queue, finish=finish))

    assert worker.row(run_id)["status"] == "completed"
    assert not list(worker.folders.journals.iterdir())


def test_lease_is_renewed_until_outcome_is_delivered(worker):
    """Only the last call fails, perhaps for longer than a lease. No other worker may claim the run."""
    expires_first = []
    run_id = worker.enqueue()

    def expires():
        return worker.row(run_id)["lease_expires_at"]

    def finish(*arguments):
        if len(expires_first) < 2:  # each try waits until a heartbeat has renewed the lease
            expires_first.append(expires())
            wait_for(lambda: expires() > expires_first[-1])
            raise Unavailable("the results are too large")
        return worker.queue.finish(*arguments)

    worker.work(queue=Replaced(worker.queue, finish=finish))

    assert len(expires_first) == 2
    assert (worker.row(run_id)["status"], worker.row(run_id)["attempt"]) == ("completed", 1)
    assert not list(worker.folders.journals.iterdir())


def test_outcome_of_canceled_run_is_retried_like_any_other(worker):
    worker.drain_seconds = 0.1
    run_id = worker.enqueue()
    worker.trainer.during = lambda epoch: worker.queue.cancel(run_id) and worker.trainer.stop.wait(30)
    refused_until = []

    def finish(*arguments):
        refused_until[:] = refused_until or [time.monotonic() + 3 * worker.drain_seconds]
        if time.monotonic() < refused_until[0]:
            raise Unavailable("down")
        return worker.queue.finish(*arguments)

    worker.work(queue=Replaced(worker.queue, finish=finish))

    row = worker.row(run_id)
    assert row["status"] == "canceled"
    assert row["results"]["artifacts"]
    assert not list(worker.folders.journals.iterdir())


def test_undelivered_outcome_is_delivered_by_next_process(worker):
    run_id = worker.enqueue()

    def finish(*_):
        worker.shutdown.set(StopReason.SHUTDOWN)
        raise Unavailable("down")

    worker.drain_seconds = 0.2
    worker.work(queue=Replaced(worker.queue, finish=finish))
    assert worker.row(run_id)["status"] == "running"

    worker.deliver_orphans()

    assert worker.row(run_id)["status"] == "completed"
    assert worker.row(run_id)["results"]["mAP"] == 0.5
    assert not list(worker.folders.journals.iterdir())


def test_run_of_crashed_process_is_requeued(worker):
    run_id = worker.enqueue()
    journal = Journal.create(worker.folders.journals, worker.claim())
    journal.record("epoch", {"epoch": 1})
    journal.close()

    worker.deliver_orphans()

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "crash" in row["error_message"]
    assert "epoch" in worker.kinds(run_id)


def test_failed_heartbeat_thread_stops_run(worker, monkeypatch):
    worker.enqueue()
    worker.trainer.during = lambda epoch: worker.trainer.stop.wait(30)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    end = worker.work(queue=Replaced(worker.queue, beat=raising(ZeroDivisionError())))

    assert end.outcome is None
    assert len(worker.reporter.calls) < 10
    assert not (worker.home / "storage").exists()


def test_finish_request_reaches_the_training(worker):
    run_id = worker.enqueue()

    def request_finish(epoch):
        worker.queue.request_finish(run_id)
        wait_for(lambda: worker.trainer.stop.reason is StopReason.FINISH)

    worker.trainer.during = request_finish
    worker.work()

    assert worker.row(run_id)["status"] == "completed"


def test_damaged_checkpoint_is_skipped_for_previous_one(worker):
    run_id = worker.enqueue()
    first = worker.folders.folder(worker.claim().job).path
    save_checkpoint(first, 1)
    broken = save_checkpoint(first, 2)
    (first / "checkpoints" / "epoch-00002.pt").write_bytes(b"x" * broken.bytes)
    worker.queue.finish(worker.claim(), Retry(message="lost"), [])
    worker.update_row(run_id, not_before=None)

    worker.work_again()

    assert worker.trainer.orders[0].resume == first / "checkpoints" / "epoch-00001.pt"
    assert worker.warnings(run_id, "checkpoint_broken")
    assert worker.warnings(run_id, "resumed")


def test_run_leaves_no_thread(worker):
    before = threading.active_count()
    worker.enqueue()

    worker.work()

    assert threading.active_count() <= before


def test_heartbeat_after_outcome_is_rejected(worker):
    worker.enqueue()
    lease = worker.claim()

    worker.work(lease)

    assert worker.queue.beat(lease, None, []) is Verdict.LOST


def test_deeply_nested_checkpoint_folders_do_not_fail_finished_training(worker):
    def nest(epoch):
        at = os.open(worker.trainer.orders[-1].run_dir / "checkpoints", os.O_RDONLY) if epoch == 3 else None
        for _ in range(1200 if at else 0):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        if at:
            os.close(at)

    worker.trainer.during = nest
    run_id = worker.enqueue()
    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert not (worker.folders.runs / f"train_{run_id}" / "checkpoints").exists()
