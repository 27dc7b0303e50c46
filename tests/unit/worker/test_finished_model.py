"""Publishing of finished models: retries, damaged files, and attempts that only publish."""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import threading
import time

import pytest

from tests.storage_server import StorageServer
from tests.unit.worker.worker_room import BUCKET, Room, in_background
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, HostFailed, MachineFailed, Misconfigured, ObjectMissing, Unavailable
from trainer.core.events import Finished, WeightsFile
from trainer.core.retry import RetryPolicy
from trainer.core.run_folder import RunFolder
from trainer.core.stop import StopReason, StopSignal
from trainer.remote.storage_api import StorageApi
from trainer.storage.supabase import SupabaseObjectStore
from trainer.worker import finished_marker, publish

AGAIN = "22222222-2222-4222-8222-222222222222"
SAID = {
    "missing": ObjectMissing("object 'best.pt' does not exist in bucket 'b'"),
    "bad request": BadRequest("storage accepts no object called 'best.pt'"),
    "misconfigured": Misconfigured("bucket missing"),
    "machine failed": MachineFailed("cannot read or write /storage: the disk is full"),
    "host failed": HostFailed("the disk is read-only"),
    "unavailable": Unavailable("storage does not answer"),
    "disk": OSError(28, "No space left on device"),
}


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


@pytest.fixture
def at_once(monkeypatch):
    """The same retries without pauses."""
    policy = RetryPolicy(tries=100_000, first_wait=0.01, longest_wait=0.01, total_seconds=86_400)
    monkeypatch.setattr(publish, "PUBLISH_RETRIES", policy)


class Refusing:
    """The store of the fixture. Its method `call` raises the errors in `errors`, then works."""

    def __init__(self, room, call, errors):
        self._room = room
        self._call = call
        self.errors = list(errors)

    def __getattr__(self, name):
        real = getattr(self._room.store, name)

        def raising(*arguments, **more):
            if name == self._call and self.errors:
                raise self.errors.pop()
            return real(*arguments, **more)

        return raising


def warnings(room, run_id, code):
    events = room.queue.events(run_id)
    return [e.data["message"] for e in events if e.kind == "warning" and e.data["code"] == code]


def has_its_model(room, run_id, content=b"the best"):
    """Assert that the run is completed and its row names the trained weights."""
    row = room.row(run_id)
    assert row["status"] == "completed", row["error_message"]
    best = next(artifact for artifact in row["results"]["artifacts"] if artifact["name"] == "best.pt")
    assert row["trained_model_url"] == best["url"]
    assert best["sha256"] == hashlib.sha256(content).hexdigest()
    path = room.home / "fetched"
    room.store.download(ObjectRef(bucket=BUCKET, key=best["path"]), path, StopSignal())
    assert path.read_bytes() == content
    return row


def interrupted_upload(room):
    """Return a run whose training finished and whose upload was interrupted by a shutdown, and its folder."""
    run_id = room.enqueue()

    class Closed(Refusing):
        def __getattr__(self, name):
            if name == "upload":
                room.shutdown.set(StopReason.SHUTDOWN)
            return super().__getattr__(name)

    room.drain_seconds = 0.3
    room.work(store=Closed(room, "upload", [Unavailable("down")] * 1000))
    room.drain_seconds = 2.0
    assert room.row(run_id)["status"] == "queued"
    return run_id, room.home / "runs" / f"train_{run_id}"


# ── history ──


def forget_epochs(room, run_id, told, by=1):
    """Edit the row as if the service was killed after it reported epoch `told` in attempt `by`."""
    with contextlib.closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute("delete from training_run_events where kind = 'epoch' and json_extract(data, '$.epoch') > ?", [told])
        db.execute(
            "update training_runs set last_reported_epoch = ?, last_reported_attempt = ? where id = ?",
            [told, by, run_id],
        )


def epochs(room, run_id):
    return [e.data | {"attempt": e.attempt} for e in room.queue.events(run_id) if e.kind == "epoch"]


@pytest.mark.parametrize("told_by", [0, 2])
def test_finished_model_reports_all_epochs_after_other_attempt_reported_some(room, told_by):
    run_id, run_dir = interrupted_upload(room)
    forget_epochs(room, run_id, told=2, by=told_by)
    (run_dir / "results.csv").write_text(
        "epoch,time,metrics/mAP50(B),lr/pg0\n1,2,0.1,0.3\n2,4.5,0.4,0.2\n3,6,0.2,0.1\n"
    )

    room.work(room.claim(AGAIN), StopSignal())

    assert [e["epoch"] for e in epochs(room, run_id) if e["attempt"] == 2] == [1, 2, 3]


def test_epochs_missed_by_killed_service_are_reported_with_finished_model(room):
    run_id, run_dir = interrupted_upload(room)
    forget_epochs(room, run_id, told=1)
    (run_dir / "results.csv").write_text(
        "epoch,time,metrics/mAP50(B),lr/pg0\n1,2,0.1,0.3\n2,4.5,0.4,0.2\n3,6,0.2,0.1\n"
    )

    room.work(room.claim(AGAIN), StopSignal())

    has_its_model(room, run_id)
    assert [(e["attempt"], e["epoch"]) for e in epochs(room, run_id)] == [(1, 1), (2, 2), (2, 3)]
    second = epochs(room, run_id)[1]
    assert (second["metrics"], second["seconds"]) == ({"metrics/mAP50(B)": 0.4, "lr/pg0": 0.2}, 2.5)


@pytest.mark.parametrize(
    "table",
    ["", "epoch,time\n", "epoch,time,lr/pg0\n2,3,many\n", "epoch,time,lr/pg0\n" + "9999,1,1\n" * 9, None],
)
def test_damaged_results_csv_does_not_lose_model(room, table):
    run_id, run_dir = interrupted_upload(room)
    forget_epochs(room, run_id, told=1)
    (run_dir / "results.csv").unlink()
    if table is None:
        (run_dir / "results.csv").symlink_to("/dev/zero")
    else:
        (run_dir / "results.csv").write_text(table)

    room.work(room.claim(AGAIN), StopSignal())

    has_its_model(room, run_id)
    assert [e["epoch"] for e in epochs(room, run_id)] == [1]


# ── patience ──


@pytest.mark.parametrize("call", ["upload", "list"])
@pytest.mark.parametrize("said", SAID)
def test_errors_of_store_or_disk_do_not_end_run_with_finished_model(room, at_once, call, said):
    run_id = room.enqueue()

    room.work(store=Refusing(room, call, [SAID[said]] * 12))

    row = has_its_model(room, run_id)
    assert (row["attempt"], row["failures"]) == (1, 0)
    [message] = warnings(room, run_id, "upload_waits")
    assert str(SAID[said]) in message
    assert len(room.trainer.orders) == 1


def test_each_distinct_warning_is_reported_once(room, at_once):
    run_id = room.enqueue()

    room.work(store=Refusing(room, "list", [SAID["missing"], SAID["disk"], SAID["missing"], SAID["disk"]]))

    assert len(warnings(room, run_id, "upload_waits")) == 2
    assert room.row(run_id)["status"] == "completed"


def test_run_is_requeued_after_retries_and_next_attempt_only_publishes(room, monkeypatch):
    monkeypatch.setattr(publish, "PUBLISH_RETRIES", RetryPolicy(tries=3, first_wait=0.01))
    run_id = room.enqueue()
    room.work(store=Refusing(room, "upload", [ObjectMissing("bucket 'b' does not exist")] * 1000))
    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "does not exist" in row["error_message"]
    run_dir = room.home / "runs" / f"train_{run_id}"
    assert (run_dir / ".finished.json").exists()
    assert list((run_dir / "checkpoints").glob("*.pt"))
    make_due(room, run_id)

    room.work(room.claim(AGAIN))

    has_its_model(room, run_id)
    assert len(room.trainer.orders) == 1


def make_due(room, run_id):
    import sqlite3

    with contextlib.closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute("update training_runs set not_before = null where id = ?", [run_id])


def test_cancel_ends_retries_and_keeps_uploaded_files(room):
    room.drain_seconds = 0.5
    run_id = room.enqueue()
    store = Refusing(room, "list", [Unavailable("down")] * 100_000)

    with in_background(lambda: room.work(store=store)):
        wait_for(lambda: warnings(room, run_id, "upload_waits"))
        room.queue.cancel(run_id)

    row = room.row(run_id)
    assert row["status"] == "canceled"
    assert {"best.pt", "last.pt", "run.log"} <= {artifact["name"] for artifact in row["results"]["artifacts"]}


def test_lost_lease_ends_retries(room):
    run_id = room.enqueue()
    store = Refusing(room, "upload", [Unavailable("down")] * 100_000)
    began = []

    with in_background(lambda: room.work(store=store)):
        wait_for(lambda: warnings(room, run_id, "upload_waits"))
        began.append(time.monotonic())
        delete_row(room, run_id)

    assert time.monotonic() - began[0] < 10
    assert room.row(run_id) is None


def delete_row(room, run_id):
    import sqlite3

    with contextlib.closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute("pragma foreign_keys = on")
        db.execute("delete from training_runs where id = ?", [run_id])


def wait_for(holds, seconds=15):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_model_is_published_without_finished_marker(room, monkeypatch):
    def fail(run_dir, finished):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.worker.finished_marker.write", fail)
    run_id = room.enqueue()

    room.work()

    has_its_model(room, run_id)


# ── through the real store, against its server ──


@pytest.fixture
def server():
    with StorageServer({BUCKET: False}) as server:
        yield server


@pytest.fixture
def supabase(room, server):
    api = StorageApi(server.url, "service-key")
    policy = RetryPolicy(tries=2, first_wait=0.01)
    yield SupabaseObjectStore(api, notes=room.home / "uploads", stop=room.shutdown, policy=policy)
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
def test_model_is_published_once_storage_recovers(room, server, supabase, at_once, trouble):
    server.fault("status", **TROUBLES[trouble])
    run_id = room.enqueue()

    room.work(store=supabase)

    row = room.row(run_id)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0), row["error_message"]
    assert f"/object/sign/{BUCKET}/training_runs/{run_id}/1/best.pt?token=" in row["trained_model_url"]
    for artifact in row["results"]["artifacts"]:
        assert hashlib.sha256(server.get(BUCKET, artifact["path"])).hexdigest() == artifact["sha256"]


def test_bucket_recreated_during_upload_gets_complete_model(room, server, supabase, at_once):
    run_id = room.enqueue()
    upload = supabase.upload

    def upload_and_lose(path, ref, stop, **more):
        stored = upload(path, ref, stop, **more)
        if path.name == "manifest.json" and not lost:
            lost.extend(server.objects[BUCKET])
            server.objects[BUCKET].clear()
        return stored

    lost = []
    supabase.upload = upload_and_lose
    room.work(store=supabase)

    row = room.row(run_id)
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
def test_damaged_model_is_not_published_and_training_resumes(room, name, damage):
    run_id, run_dir = interrupted_upload(room)
    DAMAGES[damage](run_dir / "weights" / name)

    room.work(room.claim(AGAIN), StopSignal())

    row = has_its_model(room, run_id)
    assert row["attempt"] == 2
    assert room.trainer.orders[1].resume == run_dir / "checkpoints" / "epoch-00003.pt"
    [message] = warnings(room, run_id, "model_damaged")
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
    look.join(5)

    assert damages == ["best.pt is not a file"]


def test_damaged_model_without_checkpoint_is_trained_again(room):
    run_id, run_dir = interrupted_upload(room)
    (run_dir / "weights" / "best.pt").unlink()
    shutil.rmtree(run_dir / "checkpoints")

    room.work(room.claim(AGAIN), StopSignal())

    has_its_model(room, run_id)
    assert room.trainer.orders[1].resume is None


def test_model_damaged_during_retries_is_not_published(room, at_once):
    """The run is requeued, and the next attempt resumes from the checkpoint."""
    run_id = room.enqueue()
    run_dir = room.home / "runs" / f"train_{run_id}"
    store = Refusing(room, "upload", [Unavailable("down")] * 5)
    record = room.listener.event

    def damage(job, event):
        record(job, event)
        if getattr(event, "code", "") == "upload_waits":
            (run_dir / "weights" / "best.pt").write_bytes(b"")

    room.listener.event = damage
    room.work(store=store)
    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "best.pt" in row["error_message"]
    make_due(room, run_id)

    room.work(room.claim(AGAIN))

    has_its_model(room, run_id)
    assert warnings(room, run_id, "model_damaged")
    assert room.trainer.orders[1].resume == run_dir / "checkpoints" / "epoch-00003.pt"


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "{runs}/other/weights/best.pt", "{run_dir}/../other.pt", "best.pt", ""]
)
def test_model_outside_of_run_folder_is_rejected(room, place):
    """The training process may report any path. The service must not read or publish it."""
    run_id = room.enqueue()
    train = room.trainer.train

    def lie(order, *arguments):
        from dataclasses import replace

        finished = train(order, *arguments)
        path = place.format(runs=order.run_dir.parent, run_dir=order.run_dir)
        return replace(finished, best=replace(finished.best, path=path))

    room.trainer.train = lie
    room.work()

    row = room.row(run_id)
    assert row["status"] == "failed"
    assert "outside of its run folder" in row["error_message"]
    assert row["trained_model_url"] is None


def test_finished_marker_with_outside_path_is_ignored(room):
    """The training process can write a marker itself. It must not publish other files with it."""
    import json

    run_id, run_dir = interrupted_upload(room)
    marker = json.loads((run_dir / ".finished.json").read_text())
    secret = room.home / "secret"
    secret.write_bytes(b"the best")
    (run_dir / ".finished.json").write_text(json.dumps(marker | {"best": marker["best"] | {"path": str(secret)}}))

    room.work(room.claim(AGAIN), StopSignal())

    has_its_model(room, run_id)
    assert len(room.trainer.orders) == 2


# ── and the one that is asked for ──


def edit(room, run_id, configuration):
    import json
    import sqlite3

    with contextlib.closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute("update training_runs set configuration = ? where id = ?", [json.dumps(configuration), run_id])


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
def test_finished_model_is_published_only_if_row_asks_for_it(room, configuration, trainings):
    run_id, _ = interrupted_upload(room)
    edit(room, run_id, configuration)

    room.work(room.claim(AGAIN), StopSignal())

    assert room.row(run_id)["status"] == "completed"
    assert len(room.trainer.orders) == trainings
    assert len(warnings(room, run_id, "settings_changed")) == trainings - 1


def test_finished_model_of_other_version_is_published(room):
    """Other versions have other warnings, another order of settings, and may record defaults."""
    import json

    run_id, run_dir = interrupted_upload(room)
    marker = json.loads((run_dir / ".finished.json").read_text())
    plan = marker["report"]["plan"]
    plan |= {
        "warnings": ["other words"],
        "chosen": plan["chosen"][::-1],
        "later": 1,
        "args": plan["args"] | {"patience": 100},
    }
    (run_dir / ".finished.json").write_text(json.dumps(marker))

    room.work(room.claim(AGAIN), StopSignal())

    assert room.row(run_id)["status"] == "completed"
    assert len(room.trainer.orders) == 1
    assert warnings(room, run_id, "settings_changed") == []


def test_halved_batch_is_reported_and_is_the_same_training(room):
    room.trainer.batch = 4
    run_id, _ = interrupted_upload(room)

    room.work(room.claim(AGAIN), StopSignal())

    assert len(room.trainer.orders) == 1
    results = room.row(run_id)["results"]
    assert (results["plan"]["batch"], results["plan"]["asked_batch"]) == (4, 16)
    assert "batch" not in results
