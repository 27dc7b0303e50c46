"""F14, F15: a disk fails, or there is too little memory."""

import re
import zipfile

import psutil
import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.disks import KINDS, MESSAGES, MIB
from tests.long import long_except


def check_only_run_failed(cloud, a, run_id, *patterns):
    """Wait until the run fails with an error that matches all patterns and the service is idle. Return the row."""
    row = cloud.wait(run_id, "failed", seconds=60)
    for pattern in patterns:
        assert re.search(pattern, row["error_message"]), row["error_message"]
    assert a.process.poll() is None
    a.wait_idle()
    return row


def test_too_full_disk_is_reported_before_training(cloud, disk, host, tmp_path):
    """F14 (I6): RUNS_DIR has space for most runs, but not for this model.

    The error has the free and the needed space in MiB, and no training starts.
    """
    models = tmp_path / "models"
    models.mkdir()
    with zipfile.ZipFile(models / "large.pt", "w") as weights:
        weights.writestr("data.pkl", bytes(20 * MIB))
    a = host("a", QUICK, RUNS_DIR=disk("runs", mebibytes=400).place, MODELS_DIR=models)

    run_id = cloud.insert(base_model="large.pt", configuration={"epochs": 2}, max_attempts=1)
    row = check_only_run_failed(cloud, a, run_id, "MiB free", "needs about", "RUNS_DIR")

    assert cloud.epochs(row["id"]) == {}
    completes(cloud, cloud.enqueue(epochs=2))


@pytest.mark.long
def test_disk_full_before_first_batch_fails_only_that_run(cloud, disk, host):
    """F14 (I6 I8): the disk had space during the check before the training, but no space when the training started."""
    runs = disk("runs")
    a = host("a", QUICK | {"seconds_to_start": 1}, RUNS_DIR=runs.place)
    run_id = cloud.enqueue(epochs=40, max_attempts=1)
    a.training()
    runs.fail()

    check_only_run_failed(cloud, a, run_id, "disk", "full", MESSAGES["full"])

    runs.restore()
    a.behave(**QUICK)
    completes(cloud, cloud.enqueue(epochs=2))


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
def test_disk_failure_during_download_fails_only_that_run(cloud, disk, host, kind):
    """F14 (I6 I11): the error names the cause, and the next run gets the complete dataset."""
    data, reference = disk("data", kind), cloud.store_dataset()
    a = host("a", QUICK, DATASET_ROOT=data.place)
    cloud.storage.fault("delay", on="GET /object/", times=1000, seconds=0.5)
    run_id = cloud.enqueue(reference, epochs=2, max_attempts=1)
    wait_for(lambda: any("GET /object/" in request for request in cloud.storage.requests))
    data.fail()
    cloud.storage.faults.clear()

    row = check_only_run_failed(cloud, a, run_id, MESSAGES[kind], str(data.place))

    assert cloud.epochs(row["id"]) == {}
    data.restore()
    row = completes(cloud, cloud.enqueue(reference, epochs=2))
    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
    # on a read-only disk, no file can be removed; the housekeeping removes the files later
    assert kind == "read-only" or not unfinished(data.place)


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
def test_failed_cache_disk_fails_only_that_run(cloud, disk, host, kind):
    """F14 (I6 I11): the dataset is in the cache, but neither a use mark nor the view of the run can be written."""
    data, reference = disk("data", kind), cloud.store_dataset()
    a = host("a", QUICK, DATASET_ROOT=data.place)
    completes(cloud, cloud.enqueue(reference, epochs=1))
    a.wait_idle()
    data.fail()

    check_only_run_failed(cloud, a, cloud.enqueue(reference, epochs=2, max_attempts=1), MESSAGES[kind], str(data.place))

    data.restore()
    asked = len(cloud.storage.requests)
    completes(cloud, cloud.enqueue(reference, epochs=2))
    assert not any("GET /object/datasets/" in request for request in cloud.storage.requests[asked:])
    assert not unfinished(data.place)


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
@pytest.mark.long
def test_failed_checkpoint_disk_fails_only_that_run(cloud, disk, host, kind):
    """F14 (I6 I8): checkpoints, results and the log cannot be written. Only this run fails."""
    runs = disk("runs", kind)
    a = host("a", {"seconds_per_epoch": 0.3, "checkpoint_bytes": 2 * MIB}, RUNS_DIR=runs.place)
    run_id = cloud.enqueue(epochs=40, max_attempts=1)
    cloud.wait_epoch(run_id, 2)
    runs.fail()

    check_only_run_failed(cloud, a, run_id, MESSAGES[kind])

    runs.restore()
    a.behave(**QUICK)
    completes(cloud, cloud.enqueue(epochs=2))


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
def test_failed_results_disk_delays_upload(cloud, disk, host, kind):
    """F14 (I6 I8): the disk fails during the upload. The upload is retried until the disk works again."""
    runs = disk("runs", kind)
    a = host("a", QUICK, RUNS_DIR=runs.place)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=1.5)
    run_id = cloud.enqueue(epochs=3)
    cloud.wait_phase(run_id, "uploading")
    runs.fail()

    wait_for(lambda: "upload_waits" in cloud.warnings(run_id))
    message = next(e["data"]["message"] for e in cloud.events(run_id, "warning") if e["data"]["code"] == "upload_waits")
    assert re.search(MESSAGES[kind], message), message
    assert cloud.row(run_id)["status"] == "running"
    if kind == "read-only":  # the disk can be repaired only while no process uses it
        a.stop()
    runs.restore()
    if kind == "read-only":
        a.start()
    row = cloud.wait(run_id, "completed", seconds=60)

    assert (row["attempt"], row["failures"]) == (2 if kind == "read-only" else 1, 0)
    assert cloud.epochs(run_id) == {1: [1, 2, 3]}
    assert a.process.poll() is None


def completes(cloud, run_id, seconds=60):
    row = cloud.wait(run_id, "completed", "failed", seconds=seconds)
    assert row["status"] == "completed", row["error_message"]
    return row


def unfinished(root):
    """Return the unfinished downloads in the cache."""
    return [path for path in (root / ".cache" / "tmp").glob("*") if path.is_file() or any(path.iterdir())]


def test_run_resumes_from_checkpoint_when_disk_has_space(cloud, disk, host):
    """F14 (I8 I9): the next attempt resumes from the last checkpoint that was written before the disk was full."""
    runs = disk("runs")
    a = host("a", {"seconds_per_epoch": 0.25, "checkpoint_bytes": 2 * MIB}, RUNS_DIR=runs.place)
    run_id = cloud.enqueue(epochs=12)
    cloud.wait_epoch(run_id, 3)
    runs.fail()
    wait_for(lambda: not a.trainings())
    runs.restore()

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] >= 2
    assert "resumed" in cloud.warnings(run_id)


def test_partly_downloaded_dataset_is_not_trained_on(cloud, disk, host):
    """F14 (I6 I11): the cache disk gets full during a download. The error names the cause. No partial data is left."""
    data = disk("data", mebibytes=40).place
    reference = cloud.store_dataset()
    for number in range(3):
        picture = (cloud.data.parent / "images" / "train").glob("*").__next__().read_bytes()
        cloud.storage.put("datasets", f"set/images/train/large_{number}.png", picture.ljust(600_000, b"\0"))
        cloud.storage.put("datasets", f"set/labels/train/large_{number}.txt", b"0 0.5 0.5 0.2 0.2\n")
    a = host("a", QUICK, DATASET_ROOT=data)

    row = check_only_run_failed(cloud, a, cloud.enqueue(reference, epochs=2, max_attempts=1))

    assert any(word in row["error_message"].lower() for word in ("space", "disk", "full"))
    assert cloud.epochs(row["id"]) == {}
    assert not list((data / "datasets").glob("*"))


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
def test_failed_home_disk_does_not_fail_run(cloud, disk, host, kind):
    """F14 (I6 I8): the journal and the service log cannot be written. The queue still gets every epoch."""
    home = disk("a", kind)
    others = home.place.parent
    host("a", {"seconds_per_epoch": 0.2}, RUNS_DIR=others / "runs", DATASET_ROOT=others / "sets")
    run_id = cloud.enqueue(epochs=8)
    cloud.wait_epoch(run_id, 2)
    home.fail()

    row = cloud.wait(run_id, "completed", "failed")

    assert row["status"] == "completed", row["error_message"]
    assert cloud.epochs(run_id) == {1: [1, 2, 3, 4, 5, 6, 7, 8]}


def test_memory_limit_of_training_is_named_in_error(cloud, host):
    """F15 (I6): the training process has a memory limit. The error names memory, and the service continues."""
    a = host("a", QUICK | {"seconds_to_start": 1.0, "memory_mib": 900})
    run_id = cloud.enqueue(epochs=2, max_attempts=1)
    a.training().rlimit(psutil.RLIMIT_AS, (300 * MIB, 300 * MIB))

    row = check_only_run_failed(cloud, a, run_id)

    assert "memory" in row["error_message"].lower()
    a.behave(**QUICK)
    cloud.wait(cloud.enqueue(epochs=1), "completed")


def test_error_of_sigkill_names_memory(cloud, host):
    """F15 (I6 I9): a SIGKILL most likely comes from the out-of-memory killer. The error says what to change."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=10, max_attempts=1)
    cloud.wait_epoch(run_id, 2)
    a.training().kill()

    row = check_only_run_failed(cloud, a, run_id, "SIGKILL", "memory", "fewer workers or a smaller batch")

    assert row["attempt"] == 1
