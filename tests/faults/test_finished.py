"""F2, F3, F14, F20: the training has finished, and its model is not published yet."""

import hashlib
import os

import pytest

from tests.acceptance.service import running
from tests.faults.cloud import BUCKET, wait_for
from tests.faults.conftest import QUICK
from tests.faults.disks import Disk, DiskUnavailable
from tests.long import long_except

MODEL = b"not really weights: best.pt 4"  # the model of the fake training after four epochs
NO_KEY = b'{"statusCode":"404","error":"NoSuchKey","message":"Object not found"}'
DAMAGES = {
    "gone": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, 5),
    "empty": lambda path: os.truncate(path, 0),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


def wait_published(cloud, run_id):
    """Wait until the run is completed with the trained model, and return the row."""
    row = cloud.wait(run_id, "completed", "failed", seconds=60)
    assert row["status"] == "completed", row["error_message"]
    cloud.check_published(row)
    best = next(artifact for artifact in row["results"]["artifacts"] if artifact["name"] == "best.pt")
    assert best["sha256"] == hashlib.sha256(MODEL).hexdigest()
    return row


@pytest.mark.parametrize("damage", long_except(DAMAGES, "gone", "truncated"))
def test_damaged_model_is_rebuilt_before_run_completes(cloud, host, damage):
    """F2 F3 (I8): the service is killed during the upload, and best.pt is damaged. The run then resumes."""
    a = host("a", QUICK)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=6)
    run_id = cloud.enqueue(epochs=4)
    cloud.wait_phase(run_id, "uploading")
    a.kill()
    DAMAGES[damage](a.run_dir(run_id) / "weights" / "best.pt")
    cloud.storage.faults.clear()

    a.start()

    assert wait_published(cloud, run_id)["attempt"] == 2
    assert {"model_damaged", "resumed"} <= set(cloud.warnings(run_id))
    assert cloud.epochs(run_id) == {1: [1, 2, 3, 4]}
    a.wait_idle()


def test_intact_model_is_uploaded_without_second_training(cloud, host):
    """F2 (I8): the service is killed during the upload, and the model is intact. Only the upload is repeated."""
    a = host("a", QUICK)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=6)
    run_id = cloud.enqueue(epochs=4)
    cloud.wait_phase(run_id, "uploading")
    a.kill()
    cloud.storage.faults.clear()

    a.start()

    assert wait_published(cloud, run_id)["attempt"] == 2
    assert cloud.phases(run_id, 2) == ["uploading", "ending"]


WRONG_ANSWERS = {
    "404 once for a signed URL": {"on": "POST /object/sign", "status": 400, "body": NO_KEY, "times": 1},
    "404 eight times for a signed URL": {"on": "POST /object/sign", "status": 400, "body": NO_KEY, "times": 8},
    "a login page for every route": {"on": "/", "status": 200, "body": b"<html>Log in</html>", "times": 40},
    "null for every route": {"on": "/", "status": 200, "body": b"null", "times": 40},
}


@pytest.mark.parametrize("answer", long_except(WRONG_ANSWERS, "404 eight times for a signed URL"))
def test_run_completes_in_one_attempt_despite_wrong_storage_answers(cloud, host, answer):
    """F20 (I8): Storage gives wrong answers after the end of the training."""
    a = host("a", QUICK | {"seconds_to_finish": 1.5})
    run_id = cloud.enqueue(epochs=4)
    cloud.wait_phase(run_id, "finalizing")
    cloud.storage.fault("status", **WRONG_ANSWERS[answer])

    row = wait_published(cloud, run_id)

    assert (row["attempt"], row["failures"]) == (1, 0)
    a.wait_idle()


def test_recreated_bucket_gets_all_artifacts(cloud, host):
    """F20 (I8): the bucket is deleted during the upload, then created again. The run completes with all artifacts."""
    a = host("a", QUICK)
    cloud.storage.fault("delay", on="/1/run.log", times=1, seconds=2)
    run_id = cloud.enqueue(epochs=4)
    wait_for(lambda: any(key.endswith("/1/best.pt") for key in cloud.storage.objects[BUCKET]))
    bucket = cloud.storage.buckets.pop(BUCKET)
    cloud.storage.objects[BUCKET].clear()
    wait_for(lambda: "upload_waits" in cloud.warnings(run_id))
    cloud.storage.buckets[BUCKET] = bucket

    row = wait_published(cloud, run_id)

    assert (row["attempt"], row["failures"]) == (1, 0)
    a.wait_idle()


def test_upload_to_local_store_is_retried_until_disk_has_space(drawn, tmp_path):
    """F14 (I8): with BACKEND=local, the disk with the artifacts is full until space is freed."""
    (tmp_path / "home").mkdir()
    disk = Disk("full", tmp_path / "home" / "storage", mebibytes=32)
    try:
        disk.__enter__()
    except DiskUnavailable as reason:
        pytest.skip(str(reason))
    try:
        disk.fail()
        with running(tmp_path / "home", QUICK, EXTRA_DATASET_ROOTS=drawn.parent) as service:
            run_id = service.enqueue(drawn, epochs=4)
            service.wait_until(run_id, lambda row: "upload_waits" in codes(service, run_id))
            assert service.row(run_id)["status"] == "running"
            disk.restore()
            row = service.wait(run_id, "completed", "failed")

            assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0), row["error_message"]
            best = next(artifact for artifact in row["results"]["artifacts"] if artifact["name"] == "best.pt")
            assert best["sha256"] == hashlib.sha256(MODEL).hexdigest()
            assert row["trained_model_url"] == best["url"]
    finally:
        disk.__exit__()


def codes(service, run_id):
    from trainer.jobs.sqlite import SqliteQueue

    events = SqliteQueue(service.home / "queue.db").events(run_id)
    return [event.data["code"] for event in events if event.kind == "warning"]
