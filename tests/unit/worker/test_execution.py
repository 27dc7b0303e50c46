"""One run, from lease to outcome: every way in which it can end, and the files that stay."""

import json
import os
import shutil
import threading
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.unit.worker.worker_room import BUCKET, Room, in_background, save_checkpoint
from trainer.core.dataset import ObjectRef
from trainer.core.errors import DatasetError, MachineFailed, Misconfigured, RunFailed, Unavailable
from trainer.core.job import Completed, Job, RunRequest, Verdict
from trainer.core.retry import RetryPolicy
from trainer.core.run_folder import RunFolder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.worker import fetching
from trainer.worker.checkpoint_uploads import CheckpointUploads
from trainer.worker.journal import Journal
from trainer.worker.lease import Heartbeat, LeaseTimes, kept_alive
from trainer.worker.liveness import Liveness
from trainer.worker.run_context import RunContext


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


def test_run_completes_with_results(room):
    run_id = room.enqueue()

    room.work()

    row = room.row(run_id)
    results = row["results"]
    assert row["status"] == "completed"
    assert (results["mAP"], results["metrics"]) == (0.5, {"metrics/mAP50(B)": 0.7, "epoch": 3})
    assert results["progress"]["percent"] == 100.0
    assert results["run_dir"] == str(room.home / "runs" / f"train_{run_id}")
    assert results["plan"]["epochs"] == 3
    assert results["dataset"] == {"images": {"train": 4}}
    assert row["error_message"] is None


def test_row_names_artifacts_with_correct_checksums(room, tmp_path):
    import hashlib

    run_id = room.enqueue()
    room.work()
    row = room.row(run_id)
    artifacts = {artifact["name"]: artifact for artifact in row["results"]["artifacts"]}

    assert row["trained_model_url"] == artifacts["best.pt"]["url"]
    assert {"best.pt", "last.pt", "results.csv", "run.log", "manifest.json"} <= set(artifacts)
    for name, artifact in artifacts.items():
        assert artifact["path"] == f"training_runs/{run_id}/1/{name}"
        copy = tmp_path / "copy"
        room.store.download(ObjectRef(bucket=BUCKET, key=artifact["path"]), copy, StopSignal())
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == artifact["sha256"]
        assert copy.stat().st_size == artifact["bytes"]


def test_manifest_lists_every_other_artifact(room, tmp_path):
    run_id = room.enqueue()
    room.work()
    room.store.download(
        ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1/manifest.json"), tmp_path / "m", StopSignal(),
    )  # fmt: skip

    manifest = json.loads((tmp_path / "m").read_text())

    published = {artifact["name"] for artifact in room.row(run_id)["results"]["artifacts"]}
    assert {artifact["name"] for artifact in manifest["artifacts"]} == published - {"manifest.json"}


def test_events_are_stored_once_and_in_order(room):
    run_id = room.enqueue()

    room.work()

    kinds = room.kinds(run_id)
    assert kinds.count("epoch") == 3
    assert kinds.count("checkpoint") == 3
    assert kinds.index("phase") < kinds.index("epoch")
    assert [event.seq for event in room.queue.events(run_id)] == list(range(1, len(kinds) + 1))


def test_invalid_request_fails_with_every_problem(room):
    run_id = room.enqueue({"epochs": 0, "batch": "many"})

    room.work()

    row = room.row(run_id)
    assert row["status"] == "failed"
    assert "epochs" in row["error_message"]
    assert "batch" in row["error_message"]
    assert room.trainer.orders == []


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
def test_kind_of_error_decides_whether_run_is_retried(room, monkeypatch, error, status):
    monkeypatch.setattr(fetching, "FETCH_RETRIES", RetryPolicy(tries=1))
    run_id = room.enqueue()
    room.datasets.error = error

    room.work()

    row = room.row(run_id)
    assert row["status"] == status
    assert str(error).split("] ")[-1].split(":")[0] in row["error_message"]


def test_dataset_download_is_retried_during_outage(room, monkeypatch):
    monkeypatch.setattr(fetching, "FETCH_RETRIES", RetryPolicy(tries=100, first_wait=0.01, longest_wait=0.01))
    run_id = room.enqueue()
    prepare, outage = room.datasets.prepare, [Unavailable("storage is down")] * 3

    def prepare_later(*arguments):
        if outage:
            raise outage.pop()
        return prepare(*arguments)

    room.datasets.prepare = prepare_later
    room.work()

    assert room.row(run_id)["status"] == "completed"
    warnings = [e.data for e in room.queue.events(run_id) if e.kind == "warning"]
    assert [(w["code"], w["message"]) for w in warnings] == [
        ("fetch_waits", "Download failed, retrying: storage is down")
    ]


def test_failed_training_publishes_its_log(room):
    run_id = room.enqueue()

    def diverge(epoch):
        if epoch == 2:
            raise RunFailed("the loss is not a number")

    room.trainer.during = diverge
    room.work()

    row = room.row(run_id)
    assert (row["status"], row["error_message"]) == ("failed", "the loss is not a number")
    assert row["trained_model_url"] is None
    assert "run.log" in {artifact["name"] for artifact in row["results"]["artifacts"]}
    assert row["results"]["metrics"]["epoch"] == 1


@pytest.mark.parametrize("where", ["this host", "another host"])
def test_requeued_failed_run_resumes_from_checkpoint(room, tmp_path, where):
    room.checkpoint_seconds = 0.05
    run_id = room.enqueue({"batch": 16})

    def run_out_of_memory(epoch):
        if epoch == 3:
            deadline = time.monotonic() + 10
            while (room.row(run_id)["checkpoint"] or {}).get("epoch") != 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            raise RunFailed("use a smaller batch")

    room.trainer.during = run_out_of_memory
    room.work()
    assert room.row(run_id)["status"] == "failed"
    if where == "another host":
        (tmp_path / "runs").rename(tmp_path / "runs of the first host")
    queue_again(room, run_id, {"epochs": 3, "compute": "cpu", "batch": 4})
    room.trainer.during = lambda epoch: None
    room.work(room.claim("22222222-2222-4222-8222-222222222222"))

    assert room.row(run_id)["status"] == "completed"
    assert room.trainer.orders[1].resume.name == "epoch-00002.pt"
    assert room.trainer.orders[1].plan.batch == 4
    assert room.row(run_id)["results"]["plan"]["batch"] == 4


def queue_again(room, run_id, configuration):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        values = [json.dumps(configuration), run_id]
        db.execute("update training_runs set status = 'queued', configuration = ? where id = ?", values)


def test_canceled_run_keeps_artifacts_without_model_url(room):
    run_id = room.enqueue()

    def cancel(epoch):
        if epoch == 2:
            room.queue.cancel(run_id)
            time.sleep(0.5)

    room.trainer.during = cancel
    room.work()

    row = room.row(run_id)
    assert (row["status"], row["error_message"]) == ("canceled", "Canceled by user.")
    assert row["trained_model_url"] is None
    assert {"last.pt", "run.log"} <= {artifact["name"] for artifact in row["results"]["artifacts"]}


def test_cancel_during_upload_keeps_the_model(room):
    run_id = room.enqueue()

    class CancelingStore:
        def __getattr__(self, name):
            return getattr(room.store, name)

        def upload(self, path, ref, stop, **more):
            if path.name == "best.pt":
                room.queue.cancel(run_id)
                time.sleep(0.5)
            return room.store.upload(path, ref, stop, **more)

    room.work(store=CancelingStore())

    row = room.row(run_id)
    assert row["status"] == "canceled"
    assert row["trained_model_url"] is None
    assert "best.pt" in {artifact["name"] for artifact in row["results"]["artifacts"]}


def test_cancel_after_publishing_has_no_effect(room):
    """The model is published already, so the queue accepts `completed` for a canceling run."""
    run_id = room.enqueue()

    class LateCancel:
        def __getattr__(self, name):
            return getattr(room.queue, name)

        def finish(self, lease, outcome, events):
            assert isinstance(outcome, Completed)
            room.queue.cancel(run_id)
            return room.queue.finish(lease, outcome, events)

    room.work(queue=LateCancel())

    assert room.row(run_id)["status"] == "completed"
    assert room.row(run_id)["trained_model_url"]


def test_deleted_row_stops_run_without_publishing(room):
    run_id = room.enqueue()

    def delete(epoch):
        if epoch == 2:
            delete_row(room, run_id)
            time.sleep(0.5)

    room.trainer.during = delete
    room.work()

    assert room.row(run_id) is None
    assert not (room.home / "storage").exists()
    assert not list(room.folders.journals.iterdir())


def delete_row(room, run_id):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute("pragma foreign_keys = on")
        db.execute("delete from training_runs where id = ?", [run_id])


def test_shutdown_requeues_run_with_checkpoint(room):
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None

    room.work()

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert row["checkpoint"]["epoch"] == 2
    assert room.store.stat(ObjectRef(bucket=BUCKET, key=row["checkpoint"]["key"])).bytes == row["checkpoint"]["bytes"]


def test_next_attempt_resumes_from_local_checkpoint(room):
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None
    room.work()
    room.trainer.during = lambda epoch: None

    room.work(room.claim("22222222-2222-4222-8222-222222222222"), StopSignal())

    assert room.row(run_id)["status"] == "completed"
    assert room.row(run_id)["attempt"] == 2
    resumed = room.trainer.orders[1].resume
    assert resumed == room.home / "runs" / f"train_{run_id}" / "checkpoints" / "epoch-00002.pt"
    assert room.trainer.orders[1].run_dir.name == f"train_{run_id}-2"


def test_other_host_resumes_from_uploaded_checkpoint(room, tmp_path):
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None
    room.work()
    (tmp_path / "runs").rename(tmp_path / "runs of the first host")
    resumed = []
    room.trainer.during = lambda epoch: resumed.append(room.trainer.orders[1].resume.read_bytes())

    room.work(room.claim("22222222-2222-4222-8222-222222222222"), StopSignal())

    assert room.row(run_id)["status"] == "completed"
    assert resumed[0] == b"state after 2"


def test_unavailable_bucket_is_waited_for_when_it_has_checkpoint(room, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "FETCH_RETRIES", RetryPolicy(tries=100, first_wait=0.01, longest_wait=0.01))
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None
    room.work()
    other = Room(tmp_path)
    shutil.rmtree(other.folders.runs)
    download, outage = other.store.download, [Unavailable("storage is down")] * 2

    def download_later(*arguments, **more):
        if outage:
            raise outage.pop()
        return download(*arguments, **more)

    other.store.download = download_later
    other.work(other.claim("22222222-2222-4222-8222-222222222222"))

    assert other.trainer.orders[0].resume.name == "epoch-00002.pt"
    assert other.row(run_id)["status"] == "completed"


def test_finished_training_is_only_published_again(room):
    """A shutdown interrupted the upload. The next attempt must not train."""
    run_id = room.enqueue()

    class Closed:
        def __getattr__(self, name):
            return getattr(room.store, name)

        def upload(self, path, ref, stop, **more):
            room.shutdown.set(StopReason.SHUTDOWN)
            raise Unavailable("storage is down")

    room.drain_seconds = 0.4
    room.work(store=Closed())
    assert room.row(run_id)["status"] == "queued"

    room.work(room.claim("22222222-2222-4222-8222-222222222222"), StopSignal())

    assert room.row(run_id)["status"] == "completed"
    assert len(room.trainer.orders) == 1
    assert room.row(run_id)["trained_model_url"].endswith(f"{run_id}/2/best.pt")


@pytest.mark.parametrize("torn", ["", '{"best": "weights/be', "[]", "{}"])
def test_unreadable_finished_marker_is_ignored(room, torn):
    """F3 F14: after a power cut or a disk error during the write, the run trains again and does not fail."""
    run_id = room.enqueue()
    lease = room.claim()
    run_dir = room.folders.folder(lease.job).path
    run_dir.mkdir(parents=True)
    (run_dir / ".finished.json").write_text(torn)

    room.work(lease)

    assert room.row(run_id)["status"] == "completed"
    assert len(room.trainer.orders) == 1


def test_upload_is_retried_until_bucket_exists(room):
    run_id = room.enqueue()
    refusals = iter([Misconfigured("bucket missing")])

    class Flaky:
        def __getattr__(self, name):
            return getattr(room.store, name)

        def upload(self, path, ref, stop, **more):
            for error in refusals:
                raise error
            return room.store.upload(path, ref, stop, **more)

    room.work(store=Flaky())

    assert room.row(run_id)["status"] == "completed"
    warnings = [e.data["message"] for e in room.queue.events(run_id) if e.kind == "warning"]
    assert any("bucket missing" in warning for warning in warnings)


def test_run_taken_over_by_other_worker_is_not_changed(room):
    """The lease expired and another worker claimed the run: this one publishes nothing and leaves the row unchanged."""
    room.lease_seconds = 0.3
    room.beat_seconds = 3  # this worker is too slow to keep its lease
    run_id = room.enqueue()
    taken = threading.Event()

    def be_overtaken(epoch):
        if epoch == 2:
            taken.wait(10)

    room.trainer.during = be_overtaken
    worker = room.execution()
    lease = room.claim()
    with in_background(lambda: worker.run(lease, room.slots.acquire(1), room.shutdown.child())):
        deadline = time.monotonic() + 10
        while not (other := room.claim("22222222-2222-4222-8222-222222222222", worker="other")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        taken.set()

    assert other.job.attempt == 2
    row = room.row(run_id)
    assert (row["status"], row["worker_id"]) == ("running", "other")
    assert "trained_model_url" not in row or row["trained_model_url"] is None


def test_lease_counts_from_before_heartbeat_was_sent(room, tmp_path):
    """F4 F7: the answer was slow. The lease starts when the database receives the request."""
    room.enqueue()
    lease, stop, verdicts = room.claim(), StopSignal(), [Verdict.OK, Verdict.LOST]

    class Slow:
        def beat(self, *_):
            time.sleep(0.4)
            return verdicts.pop(0)

    times = LeaseTimes(beat=0.6, progress=60, lease=0.5)
    journal = Journal.create(tmp_path / "journal", lease)
    heartbeat = Heartbeat(Slow(), journal, stop, times, dict, Liveness())
    with closing(journal), kept_alive(heartbeat, "slow"):
        time.sleep(0.75)  # the answer came 0.35 s ago, the question went out before that
        with pytest.raises(Stopped):
            heartbeat.confirm(stop)


def test_slot_is_free_during_upload(room):
    room.enqueue()
    free = []

    class Watched:
        def __getattr__(self, name):
            return getattr(room.store, name)

        def upload(self, path, ref, stop, **more):
            free.append(room.slots.free)
            return room.store.upload(path, ref, stop, **more)

    room.work(store=Watched())

    assert set(free) == {1}


def test_checkpoints_are_uploaded_at_intervals_and_two_are_kept(room):
    room.checkpoint_seconds = 0.05
    run_id = room.enqueue()
    room.trainer = type(room.trainer)(epochs=6)
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 6 else time.sleep(0.3)

    room.work()

    keys = [
        info.ref.key for info in room.store.list(ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1/checkpoints"))
    ]
    assert len(keys) == 2
    assert room.row(run_id)["checkpoint"]["key"] in keys


def uploads_of(run_dir, room, store, confirm=lambda stop: None):
    job = Job(id="r", request=RunRequest(data_yaml=None), attempt=1)
    events = SimpleNamespace(record=print, is_delivered=lambda key: True)
    heartbeat = SimpleNamespace(confirm=confirm)
    run = RunContext(job=job, folder=RunFolder(run_dir), stop=StopSignal(), events=events, heartbeat=heartbeat)
    return CheckpointUploads(room.run_host(store=store).services, run)


@pytest.mark.parametrize("digest", ["../../../other/1", "", "A" * 64, "a" * 64 + "\n", "a" * 63])
def test_checkpoint_with_invalid_sha256_is_not_uploaded(tmp_path, room, digest):
    uploads = uploads_of(tmp_path, room, room.store)

    uploads.note(replace(save_checkpoint(tmp_path, 1), sha256=digest))

    assert uploads.send_newest(StopSignal()) is None


def test_only_checkpoint_files_of_the_run_are_uploaded(tmp_path, room):
    """The training process reports the path, so it could name another file of the host or a link to one."""
    (tmp_path / "secret.pt").write_text("a key of the service")
    uploads = uploads_of(tmp_path / "run", room, room.store)
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
    assert [info.ref.key for info in room.store.list(ObjectRef(bucket=BUCKET, key=""))] == [
        f"training_runs/r/1/checkpoints/epoch-00001-{saved.sha256[:8]}.pt"
    ]
    assert not list((tmp_path / "run" / "checkpoints").glob("*.uploading"))


def test_training_process_cannot_choose_checkpoint_of_row(room):
    """Another host resumes only from a checkpoint that the service itself uploaded."""
    real = room.trainer.train

    def train(order, stop, on_event, on_line):
        def told(event):
            on_event(replace(event, key="training_runs/other/1/best.pt") if event.kind == "checkpoint" else event)

        return real(order, stop, told, on_line)

    room.trainer.train = train
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None
    run_id = room.enqueue()
    room.work()

    assert room.row(run_id)["checkpoint"]["key"].startswith(f"training_runs/{run_id}/1/checkpoints/")
    assert {event.data.get("key") for event in room.queue.events(run_id) if event.kind == "checkpoint"} == {
        None, room.row(run_id)["checkpoint"]["key"],
    }  # fmt: skip


def test_checkpoint_is_not_uploaded_after_lease_is_lost(tmp_path, room):
    """F4: the queue answers the heartbeat before the upload with LOST."""

    def confirm(stop):
        raise Stopped(StopReason.LOST)

    sent = []
    store = type("Store", (), {"upload": lambda *arguments, **more: sent.append(arguments)})()
    uploads = uploads_of(tmp_path, room, store, confirm)
    uploads.note(save_checkpoint(tmp_path, 1))

    with pytest.raises(Stopped):
        uploads.send_newest(StopSignal())

    assert sent == []


def test_checkpoints_of_completed_run_are_removed(room):
    """The checkpoints of all attempts are removed, so that a requeued run starts from scratch."""
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.shutdown.set(StopReason.SHUTDOWN) if epoch == 3 else None
    room.work()
    assert list(room.store.list(ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1/checkpoints")))
    room.trainer.during = lambda epoch: None

    room.work(room.claim("22222222-2222-4222-8222-222222222222"), StopSignal())

    assert room.row(run_id)["status"] == "completed"
    assert not [
        info
        for info in room.store.list(ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}"))
        if "checkpoints" in info.ref.key
    ]
    for folder in room.folders.attempts(run_id):
        assert not folder.checkpoints.exists()
        assert not folder.finished_marker.exists()


def test_checkpoint_that_row_may_name_is_not_deleted(room):
    """During an outage of the queue, another host looks for the last checkpoint that the queue received."""
    room.checkpoint_seconds = 0.05
    run_id = room.enqueue()
    room.trainer = type(room.trainer)(epochs=9)
    known = []

    class OutOfReach:
        def __getattr__(self, name):
            return getattr(room.queue, name)

        def beat(self, lease, progress, events):
            if known:
                raise Unavailable("down")
            verdict = room.queue.beat(lease, progress, events)
            known.extend([checkpoint] if (checkpoint := room.row(run_id)["checkpoint"]) else [])
            return verdict

    def look(epoch):
        time.sleep(0.2)
        if epoch == 9:
            keys = [
                info.ref.key
                for info in room.store.list(ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1/checkpoints"))
            ]
            assert known[0]["key"] in keys
            assert len(keys) > 3

    room.trainer.during = look
    room.work(queue=OutOfReach())

    assert room.row(run_id)["status"] == "completed"
    assert known


def test_dataset_view_is_removed_after_run(room):
    room.enqueue()

    room.work()

    assert list(room.folders.views.iterdir()) == []


def test_outcome_is_delivered_after_outage(room):
    run_id = room.enqueue()
    refusals = iter([Unavailable("down"), Unavailable("down")])

    class Down:
        def __getattr__(self, name):
            return getattr(room.queue, name)

        def finish(self, lease, outcome, events):
            for error in refusals:
                raise error
            return room.queue.finish(lease, outcome, events)

    room.work(queue=Down())

    assert room.row(run_id)["status"] == "completed"
    assert not list(room.folders.journals.iterdir())


def test_lease_is_renewed_until_outcome_is_delivered(room):
    """Only the last call fails, for longer than a lease. No other worker may claim the run."""
    room.lease_seconds = 0.4
    run_id = room.enqueue()
    refused_until = []
    others = []

    class Refuses:
        def __getattr__(self, name):
            return getattr(room.queue, name)

        def finish(self, lease, outcome, events):
            refused_until[:] = refused_until or [time.monotonic() + 1.2]
            if time.monotonic() < refused_until[0]:
                others.append(room.claim("22222222-2222-4222-8222-222222222222", worker="other"))
                raise Unavailable("the results are too large")
            return room.queue.finish(lease, outcome, events)

    room.work(queue=Refuses())

    assert len(others) > 1
    assert not any(others)
    assert (room.row(run_id)["status"], room.row(run_id)["attempt"]) == ("completed", 1)
    assert not list(room.folders.journals.iterdir())


def test_outcome_of_canceled_run_is_retried_like_any_other(room):
    room.drain_seconds = 0.1
    run_id = room.enqueue()
    room.trainer.during = lambda epoch: room.queue.cancel(run_id) and time.sleep(0.5)
    refused_until = []

    class Refuses:
        def __getattr__(self, name):
            return getattr(room.queue, name)

        def finish(self, lease, outcome, events):
            refused_until[:] = refused_until or [time.monotonic() + 1.0]
            if time.monotonic() < refused_until[0]:
                raise Unavailable("down")
            return room.queue.finish(lease, outcome, events)

    room.work(queue=Refuses())

    row = room.row(run_id)
    assert row["status"] == "canceled"
    assert row["results"]["artifacts"]
    assert not list(room.folders.journals.iterdir())


def test_undelivered_outcome_is_delivered_by_next_process(room):
    run_id = room.enqueue()

    class Dead:
        def __getattr__(self, name):
            return getattr(room.queue, name)

        def finish(self, lease, outcome, events):
            room.shutdown.set(StopReason.SHUTDOWN)
            raise Unavailable("down")

    room.drain_seconds = 0.2
    room.work(queue=Dead())
    assert room.row(run_id)["status"] == "running"

    room.deliver_orphans()

    assert room.row(run_id)["status"] == "completed"
    assert room.row(run_id)["results"]["mAP"] == 0.5
    assert not list(room.folders.journals.iterdir())


def test_run_of_crashed_process_is_requeued(room):
    from trainer.worker.journal import Journal

    run_id = room.enqueue()
    journal = Journal.create(room.folders.journals, room.claim())
    journal.record("epoch", {"epoch": 1})
    journal.close()

    room.deliver_orphans()

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "crash" in row["error_message"]
    assert "epoch" in room.kinds(run_id)


def test_failed_heartbeat_thread_stops_run(room):
    room.enqueue()

    class Broken:
        def __getattr__(self, name):
            return getattr(room.queue, name)

        def beat(self, lease, progress, events):
            raise ZeroDivisionError

    room.trainer.during = lambda epoch: time.sleep(0.3)
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        room.work(queue=Broken())
    finally:
        threading.excepthook = hook

    assert len(room.listener.heard) < 10
    assert not (room.home / "storage").exists()


def test_finish_request_reaches_the_training(room):
    run_id = room.enqueue()
    seen = []
    train = room.trainer.train

    def watched(order, stop, *listeners):
        def look(epoch):
            if epoch == 1:
                room.queue.request_finish(run_id)
                time.sleep(0.5)
            seen.append(stop.reason)

        room.trainer.during = look
        return train(order, stop, *listeners)

    room.trainer.train = watched
    room.work()

    assert seen[-1] is StopReason.FINISH
    assert room.row(run_id)["status"] == "completed"


def test_damaged_checkpoint_is_skipped_for_previous_one(room):
    run_id = room.enqueue()
    first = room.folders.folder(room.claim().job).path
    save_checkpoint(first, 1)
    broken = save_checkpoint(first, 2)
    (first / "checkpoints" / "epoch-00002.pt").write_bytes(b"x" * broken.bytes)
    room.queue.finish(room.claim(), outcome_retry(), [])
    make_due(room, run_id)

    room.work(room.claim("22222222-2222-4222-8222-222222222222"))

    assert room.trainer.orders[0].resume == first / "checkpoints" / "epoch-00001.pt"
    codes = [e.data["code"] for e in room.queue.events(run_id) if e.kind == "warning"]
    assert "checkpoint_broken" in codes
    assert "resumed" in codes


def outcome_retry():
    from trainer.core.job import Retry

    return Retry(message="lost")


def make_due(room, run_id):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute("update training_runs set not_before = null where id = ?", [run_id])


def test_run_leaves_no_thread(room):
    before = threading.active_count()
    room.enqueue()

    room.work()

    assert threading.active_count() <= before


def test_heartbeat_after_outcome_is_rejected(room):
    room.enqueue()
    lease = room.claim()

    room.work(lease)

    assert room.queue.beat(lease, None, []) is Verdict.LOST


def test_deeply_nested_checkpoint_folders_do_not_fail_finished_training(room):
    def nest(epoch):
        at = os.open(room.trainer.orders[-1].run_dir / "checkpoints", os.O_RDONLY) if epoch == 3 else None
        for _ in range(1200 if at else 0):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        if at:
            os.close(at)

    room.trainer.during = nest
    run_id = room.enqueue()
    room.work()

    assert room.row(run_id)["status"] == "completed"
    assert not (room.folders.runs / f"train_{run_id}" / "checkpoints").exists()
