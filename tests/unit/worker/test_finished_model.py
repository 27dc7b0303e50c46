"""Publishing of finished models: retries, damaged files, and attempts that only publish."""

import hashlib
import json
import os
import shutil
import threading
from dataclasses import replace

import pytest

from tests.storage_server import StorageServer
from tests.unit.worker.harness import BUCKET, Replaced, in_background, raising, wait_for
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, HostFailed, MachineFailed, Misconfigured, ObjectMissing, Unavailable
from trainer.core.events import Finished, WeightsFile
from trainer.core.retry import RetryPolicy
from trainer.core.run_folder import RunFolder
from trainer.core.stop import StopReason, StopSignal
from trainer.remote.storage_api import StorageApi
from trainer.storage.supabase import SupabaseObjectStore
from trainer.worker import finished_marker, publish

ERRORS = {
    "missing": ObjectMissing("object 'best.pt' does not exist in bucket 'b'"),
    "bad request": BadRequest("storage accepts no object called 'best.pt'"),
    "misconfigured": Misconfigured("bucket missing"),
    "machine failed": MachineFailed("cannot read or write /storage: the disk is full"),
    "host failed": HostFailed("the disk is read-only"),
    "unavailable": Unavailable("storage does not answer"),
    "disk": OSError(28, "No space left on device"),
}


def failing_store(worker, method, errors):
    """Return the store of `worker`; its `method` raises these errors, one per call, and then works."""
    fail, call = raising(*errors), getattr(worker.store, method)

    def fail_or_call(*arguments, **more):
        fail()
        return call(*arguments, **more)

    return Replaced(worker.store, **{method: fail_or_call})


def has_its_model(worker, run_id, content=b"the best"):
    """Assert that the run is completed and its row names the trained weights."""
    row = worker.row(run_id)
    assert row["status"] == "completed", row["error_message"]
    best = next(artifact for artifact in row["results"]["artifacts"] if artifact["name"] == "best.pt")
    assert row["trained_model_url"] == best["url"]
    assert best["sha256"] == hashlib.sha256(content).hexdigest()
    path = worker.home / "fetched"
    worker.store.download(ObjectRef(bucket=BUCKET, key=best["path"]), path, StopSignal())
    assert path.read_bytes() == content
    return row


def interrupted_upload(worker):
    """Return a run whose training finished and whose upload was interrupted by a shutdown, and its folder."""
    run_id = worker.enqueue()

    def shut_down(path, ref, stop, **more):
        stop.set(StopReason.SHUTDOWN)  # the drain time is over
        worker.shutdown.set(StopReason.SHUTDOWN)
        raise Unavailable("down")

    worker.work(store=Replaced(worker.store, upload=shut_down))
    assert worker.row(run_id)["status"] == "queued"
    return run_id, worker.home / "runs" / f"train_{run_id}"


# ── history ──


def epochs(worker, run_id):
    return [e.data | {"attempt": e.attempt} for e in worker.queue.events(run_id) if e.kind == "epoch"]


@pytest.mark.parametrize("attempt", [0, 2])
def test_finished_model_reports_all_epochs_after_other_attempt_reported_some(worker, attempt):
    run_id, run_dir = interrupted_upload(worker)
    worker.forget_epochs(run_id, after=2)
    worker.update_row(run_id, last_reported_epoch=2, last_reported_attempt=attempt)
    (run_dir / "results.csv").write_text(
        "epoch,time,metrics/mAP50(B),lr/pg0\n1,2,0.1,0.3\n2,4.5,0.4,0.2\n3,6,0.2,0.1\n"
    )

    worker.work_again()

    assert [e["epoch"] for e in epochs(worker, run_id) if e["attempt"] == 2] == [1, 2, 3]


def test_epochs_missed_by_killed_service_are_reported_with_finished_model(worker):
    run_id, run_dir = interrupted_upload(worker)
    worker.forget_epochs(run_id, after=1)
    worker.update_row(run_id, last_reported_epoch=1, last_reported_attempt=1)
    (run_dir / "results.csv").write_text(
        "epoch,time,metrics/mAP50(B),lr/pg0\n1,2,0.1,0.3\n2,4.5,0.4,0.2\n3,6,0.2,0.1\n"
    )

    worker.work_again()

    has_its_model(worker, run_id)
    assert [(e["attempt"], e["epoch"]) for e in epochs(worker, run_id)] == [(1, 1), (2, 2), (2, 3)]
    second = epochs(worker, run_id)[1]
    assert (second["metrics"], second["seconds"]) == ({"metrics/mAP50(B)": 0.4, "lr/pg0": 0.2}, 2.5)


@pytest.mark.parametrize(
    "table",
    ["", "epoch,time\n", "epoch,time,lr/pg0\n2,3,many\n", "epoch,time,lr/pg0\n" + "9999,1,1\n" * 9, None],
)
def test_damaged_results_csv_does_not_lose_model(worker, table):
    run_id, run_dir = interrupted_upload(worker)
    worker.forget_epochs(run_id, after=1)
    worker.update_row(run_id, last_reported_epoch=1, last_reported_attempt=1)
    (run_dir / "results.csv").unlink()
    if table is None:
        (run_dir / "results.csv").symlink_to("/dev/zero")
    else:
        (run_dir / "results.csv").write_text(table)

    worker.work_again()

    has_its_model(worker, run_id)
    assert [e["epoch"] for e in epochs(worker, run_id)] == [1]


# ── patience ──


@pytest.mark.parametrize("method", ["upload", "list"])
@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_store_or_disk_do_not_end_run_with_finished_model(worker, method, error):
    run_id = worker.enqueue()

    worker.work(store=failing_store(worker, method, [ERRORS[error]] * 12))

    row = has_its_model(worker, run_id)
    assert (row["attempt"], row["failures"]) == (1, 0)
    [message] = worker.warnings(run_id, "upload_waits")
    assert str(ERRORS[error]) in message
    assert len(worker.trainer.orders) == 1


def test_each_distinct_warning_is_reported_once(worker):
    run_id = worker.enqueue()

    worker.work(
        store=failing_store(worker, "list", [ERRORS["missing"], ERRORS["disk"], ERRORS["missing"], ERRORS["disk"]])
    )

    assert len(worker.warnings(run_id, "upload_waits")) == 2
    assert worker.row(run_id)["status"] == "completed"


def test_run_is_requeued_after_retries_and_next_attempt_only_publishes(worker, monkeypatch):
    monkeypatch.setattr(publish, "PUBLISH_RETRIES", RetryPolicy(tries=3, first_wait=0.01))
    run_id = worker.enqueue()
    worker.work(store=failing_store(worker, "upload", [ObjectMissing("bucket 'b' does not exist")] * 1000))
    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "does not exist" in row["error_message"]
    run_dir = worker.home / "runs" / f"train_{run_id}"
    assert (run_dir / ".finished.json").exists()
    assert list((run_dir / "checkpoints").glob("*.pt"))
    worker.update_row(run_id, not_before=None)

    worker.work_again()

    has_its_model(worker, run_id)
    assert len(worker.trainer.orders) == 1


def test_cancel_ends_retries_and_keeps_uploaded_files(worker):
    worker.drain_seconds = 1.0
    run_id = worker.enqueue()
    store = failing_store(worker, "list", [Unavailable("down")] * 100_000)

    with in_background(lambda: worker.work(store=store)):
        wait_for(lambda: worker.warnings(run_id, "upload_waits"))
        worker.queue.cancel(run_id)

    row = worker.row(run_id)
    assert row["status"] == "canceled"
    assert {"best.pt", "last.pt", "run.log"} <= {artifact["name"] for artifact in row["results"]["artifacts"]}


def test_lost_lease_ends_retries(worker):
    run_id = worker.enqueue()
    store = failing_store(worker, "upload", [Unavailable("down")] * 100_000)

    with in_background(lambda: worker.work(store=store)):
        wait_for(lambda: worker.warnings(run_id, "upload_waits"))
        worker.delete_row(run_id)

    assert worker.row(run_id) is None


def test_model_is_published_without_finished_marker(worker, monkeypatch):
    def fail(run_dir, finished):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.worker.finished_marker.write", fail)
    run_id = worker.enqueue()

    worker.work()

    has_its_model(worker, run_id)


# ── through the real store, against its server ──


@pytest.fixture
def server():
    with StorageServer({BUCKET: False}) as server:
        yield server


@pytest.fixture
def supabase(worker, server):
    api = StorageApi(server.url, "service-key")
    policy = RetryPolicy(tries=2, first_wait=0.01)
    yield SupabaseObjectStore(api, notes=worker.home / "uploads", stop=worker.shutdown, policy=policy)
    api.close()


NO_KEY = b'{"statusCode":"404","error":"NoSuchKey","message":"Object not found"}'
NO_BUCKET = b'{"statusCode":"404","error":"NoSuchBucket","message":"Bucket not found"}'
BAD_KEY = b'{"statusCode":"400","error":"InvalidKey","message":"Invalid key: best.pt"}'
TROUBLES = {
    "signing answers 404 once": {"on": "POST /object/sign", "status": 404, "body": NO_KEY, "times": 1},
    "signing answers 404 for a while": {"on": "POST /object/sign", "status": 400, "body": NO_KEY, "times": 12},
    "the bucket is not there": {"on": "/", "status": 400, "body": NO_BUCKET, "times": 20},
    "a key is refused": {"on": "POST /object/training-artifacts", "status": 400, "body": BAD_KEY, "times": 7},
    "a login page for every route": {"on": "/", "status": 200, "body": b"<html>Log in</html>", "times": 20},
    "null for every route": {"on": "/", "status": 200, "body": b"null", "times": 20},
    "null about the bucket": {"on": "GET /bucket", "status": 200, "body": b"null", "times": 8},
    "no listing": {"on": "POST /object/list", "status": 200, "body": b"[null]", "times": 4},
    "a web page with 404": {"on": "/", "status": 404, "times": 20},
    "the key is refused": {"on": "/", "status": 403, "body": b'{"message":"Invalid JWT"}', "times": 20},
    "no status that anybody knows": {"on": "/", "status": 418, "times": 20},
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_model_is_published_once_storage_recovers(worker, server, supabase, trouble):
    server.fault("status", **TROUBLES[trouble])
    run_id = worker.enqueue()

    worker.work(store=supabase)

    row = worker.row(run_id)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0), row["error_message"]
    assert f"/object/sign/{BUCKET}/training_runs/{run_id}/1/best.pt?token=" in row["trained_model_url"]
    for artifact in row["results"]["artifacts"]:
        assert hashlib.sha256(server.get(BUCKET, artifact["path"])).hexdigest() == artifact["sha256"]


def test_bucket_recreated_during_upload_gets_complete_model(worker, server, supabase):
    run_id = worker.enqueue()
    upload = supabase.upload

    def upload_and_lose(path, ref, stop, **more):
        stored = upload(path, ref, stop, **more)
        if path.name == "manifest.json" and not lost:
            lost.extend(server.objects[BUCKET])
            server.objects[BUCKET].clear()
        return stored

    lost = []
    supabase.upload = upload_and_lose
    worker.work(store=supabase)

    row = worker.row(run_id)
    assert lost
    assert row["status"] == "completed"
    for artifact in row["results"]["artifacts"]:
        assert hashlib.sha256(server.get(BUCKET, artifact["path"])).hexdigest() == artifact["sha256"]


# ── the model is the one that was trained ──

DAMAGES = {
    "gone": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:3]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another": lambda path: path.write_bytes(b"the rest"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to elsewhere": lambda path: (
        path.rename(path.parents[2] / "x.pt"),
        path.symlink_to(path.parents[2] / "x.pt"),
    ),
}


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_is_not_published_and_training_resumes(worker, name, damage):
    run_id, run_dir = interrupted_upload(worker)
    DAMAGES[damage](run_dir / "weights" / name)

    worker.work_again()

    row = has_its_model(worker, run_id)
    assert row["attempt"] == 2
    assert worker.trainer.orders[1].resume == run_dir / "checkpoints" / "epoch-00003.pt"
    [message] = worker.warnings(run_id, "model_damaged")
    assert name in message or "not in the run's folder" in message


def test_pipe_in_place_of_empty_model_does_not_block_the_slot(tmp_path):
    """The training process chose the path, the size and what is there. Opening a pipe waits until a writer opens it."""
    os.mkfifo(tmp_path / "best.pt")
    pipe = WeightsFile(path=str(tmp_path / "best.pt"), sha256=hashlib.sha256().hexdigest(), bytes=0)
    damages = []

    look = threading.Thread(
        target=lambda: damages.append(
            finished_marker.find_damage(RunFolder(tmp_path), Finished(best=pipe, last=pipe, report={}))
        ),
        daemon=True,
    )
    look.start()
    look.join(15)

    assert damages == ["best.pt is not a file"]


def test_damaged_model_without_checkpoint_is_trained_again(worker):
    run_id, run_dir = interrupted_upload(worker)
    (run_dir / "weights" / "best.pt").unlink()
    shutil.rmtree(run_dir / "checkpoints")

    worker.work_again()

    has_its_model(worker, run_id)
    assert worker.trainer.orders[1].resume is None


def test_model_damaged_during_retries_is_not_published(worker):
    """The run is requeued, and the next attempt resumes from the checkpoint."""
    run_id = worker.enqueue()
    run_dir = worker.home / "runs" / f"train_{run_id}"
    store = failing_store(worker, "upload", [Unavailable("down")] * 5)
    record = worker.reporter.event

    def damage(job, event):
        record(job, event)
        if getattr(event, "code", "") == "upload_waits":
            (run_dir / "weights" / "best.pt").write_bytes(b"")

    worker.reporter.event = damage
    worker.work(store=store)
    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "best.pt" in row["error_message"]
    worker.update_row(run_id, not_before=None)

    worker.work_again()

    has_its_model(worker, run_id)
    assert worker.warnings(run_id, "model_damaged")
    assert worker.trainer.orders[1].resume == run_dir / "checkpoints" / "epoch-00003.pt"


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "{runs}/other/weights/best.pt", "{run_dir}/../other.pt", "best.pt", ""]
)
def test_model_outside_of_run_folder_is_rejected(worker, place):
    """The training process may report any path. The service must not read or publish it."""
    run_id = worker.enqueue()
    train = worker.trainer.train

    def lie(order, *arguments):
        finished = train(order, *arguments)
        path = place.format(runs=order.run_dir.parent, run_dir=order.run_dir)
        return replace(finished, best=replace(finished.best, path=path))

    worker.trainer.train = lie
    worker.work()

    row = worker.row(run_id)
    assert row["status"] == "failed"
    assert "outside of its run folder" in row["error_message"]
    assert row["trained_model_url"] is None


def test_finished_marker_with_outside_path_is_ignored(worker):
    """The training process can write a marker itself. It must not publish other files with it."""
    run_id, run_dir = interrupted_upload(worker)
    marker = json.loads((run_dir / ".finished.json").read_text())
    secret = worker.home / "secret"
    secret.write_bytes(b"the best")
    (run_dir / ".finished.json").write_text(json.dumps(marker | {"best": marker["best"] | {"path": str(secret)}}))

    worker.work_again()

    has_its_model(worker, run_id)
    assert len(worker.trainer.orders) == 2


# ── and the one that is asked for ──


@pytest.mark.parametrize(
    ("configuration", "trainings"),
    [
        ({"epochs": 3, "compute": "cpu"}, 1),
        ({"epochs": 3, "compute": "cpu", "device": "0", "workers": 3}, 1),  # belong to the host
        ({"epochs": 5, "compute": "cpu"}, 2),
        ({"epochs": 3, "compute": "cpu", "lr0": 0.5}, 2),
        ({"epochs": "many"}, 1),  # this plan cannot be trained, but the model exists
    ],
)
def test_finished_model_is_published_only_if_row_asks_for_it(worker, configuration, trainings):
    run_id, _ = interrupted_upload(worker)
    worker.update_row(run_id, configuration=configuration)

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert len(worker.trainer.orders) == trainings
    assert len(worker.warnings(run_id, "settings_changed")) == trainings - 1


def test_finished_model_of_other_version_is_published(worker):
    """Other versions have other warnings, another order of settings, and may record defaults."""
    run_id, run_dir = interrupted_upload(worker)
    marker = json.loads((run_dir / ".finished.json").read_text())
    plan = marker["report"]["plan"]
    plan |= {
        "warnings": ["other words"],
        "chosen": plan["chosen"][::-1],
        "later": 1,
        "args": plan["args"] | {"patience": 100},
    }
    (run_dir / ".finished.json").write_text(json.dumps(marker))

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert len(worker.trainer.orders) == 1
    assert worker.warnings(run_id, "settings_changed") == []


def test_halved_batch_is_reported_and_is_the_same_training(worker):
    worker.trainer.batch = 4
    run_id, _ = interrupted_upload(worker)

    worker.work_again()

    assert len(worker.trainer.orders) == 1
    results = worker.row(run_id)["results"]
    assert (results["plan"]["batch"], results["plan"]["asked_batch"]) == (4, 16)
    assert "batch" not in results
