"""F14, F15: the disk fails, or the memory is full."""

import re
import zipfile

import psutil
import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.disks import KINDS, MIB, SAYS
from tests.faults.test_killed import stored_dataset
from tests.long import long_except


def lives_on(cloud, a, run_id, *said):
    """The run failed naming the cause, nothing half-written is left, and the service works on the next run."""
    row = cloud.wait(run_id, "failed", seconds=60)
    for words in said:
        assert re.search(words, row["error_message"]), row["error_message"]
    assert a.process.poll() is None
    a.wait_idle()
    return row


def test_a_disk_that_is_too_full_to_train_is_said_before_the_training(cloud, disk, host, tmp_path):
    """F14 (I6): RUNS_DIR has room for most runs, but not for this model; said with numbers, and no training was started."""
    models = tmp_path / "models"
    models.mkdir()
    with zipfile.ZipFile(models / "large.pt", "w") as weights:
        weights.writestr("data.pkl", bytes(20 * MIB))
    a = host("a", QUICK, RUNS_DIR=disk("runs", mebibytes=400).place, MODELS_DIR=models)

    run_id = cloud.insert(base_model="large.pt", configuration={"epochs": 2}, max_attempts=1)
    row = lives_on(cloud, a, run_id, "MiB free", "needs about", "RUNS_DIR")

    assert cloud.epochs(row["id"]) == {}
    completes(cloud, cloud.enqueue(epochs=2))


@pytest.mark.long
def test_a_disk_that_is_full_before_the_first_batch_fails_that_run_only(cloud, disk, host):
    """F14 (I6 I8): it had room when it was asked, and none when the training began."""
    runs = disk("runs")
    a = host("a", QUICK | {"seconds_to_start": 1}, RUNS_DIR=runs.place)
    run_id = cloud.enqueue(epochs=40, max_attempts=1)
    a.training()
    runs.strike()

    lives_on(cloud, a, run_id, "disk", "full", SAYS["full"])

    runs.mend()
    a.behave(**QUICK)
    completes(cloud, cloud.enqueue(epochs=2))


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
def test_a_disk_that_fails_during_a_download_fails_that_run_only(cloud, disk, host, kind):
    """F14 (I6 I11): the cause is named, no part is taken for the whole, and the next run gets all of the dataset."""
    data, reference = disk("data", kind), stored_dataset(cloud)
    a = host("a", QUICK, DATASET_ROOT=data.place)
    cloud.storage.fault("delay", on="GET /object/", times=1000, seconds=0.5)
    run_id = cloud.enqueue(reference, epochs=2, max_attempts=1)
    wait_for(lambda: any("GET /object/" in request for request in cloud.storage.requests))
    data.strike()
    cloud.storage.faults.clear()

    row = lives_on(cloud, a, run_id, SAYS[kind], str(data.place))

    assert cloud.epochs(row["id"]) == {}
    data.mend()
    row = completes(cloud, cloud.enqueue(reference, epochs=2))
    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
    # on a disk that cannot be written nothing can be removed either; such leftovers are swept by their age
    assert kind == "read-only" or not unfinished(data.place)


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
def test_a_disk_that_fails_under_the_cache_fails_that_run_only(cloud, disk, host, kind):
    """F14 (I6 I11): the dataset is there, but nobody can write down who uses it, or lay it out for the training."""
    data, reference = disk("data", kind), stored_dataset(cloud)
    a = host("a", QUICK, DATASET_ROOT=data.place)
    completes(cloud, cloud.enqueue(reference, epochs=1))
    a.wait_idle()
    data.strike()

    lives_on(cloud, a, cloud.enqueue(reference, epochs=2, max_attempts=1), SAYS[kind], str(data.place))

    data.mend()
    asked = len(cloud.storage.requests)
    completes(cloud, cloud.enqueue(reference, epochs=2))
    assert not any("GET /object/datasets/" in request for request in cloud.storage.requests[asked:])
    assert not unfinished(data.place)


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
@pytest.mark.long
def test_a_disk_that_fails_under_a_checkpoint_fails_that_run_only(cloud, disk, host, kind):
    """F14 (I6 I8): no room for checkpoints, results and the log; the cause is in the row, the service goes on."""
    runs = disk("runs", kind)
    a = host("a", {"seconds_per_epoch": 0.3, "checkpoint_bytes": 2 * MIB}, RUNS_DIR=runs.place)
    run_id = cloud.enqueue(epochs=40, max_attempts=1)
    cloud.wait_epoch(run_id, 2)
    runs.strike()

    lives_on(cloud, a, run_id, SAYS[kind])

    runs.mend()
    a.behave(**QUICK)
    completes(cloud, cloud.enqueue(epochs=2))


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
def test_a_disk_that_fails_under_the_results_costs_no_training(cloud, disk, host, kind):
    """F14 (I6 I8): the model is trained and half published; the attempt waits, and publishes once the disk is well."""
    runs = disk("runs", kind)
    a = host("a", QUICK, RUNS_DIR=runs.place)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=1.5)
    run_id = cloud.enqueue(epochs=3)
    cloud.wait_phase(run_id, "uploading")
    runs.strike()

    wait_for(lambda: "upload_waits" in cloud.warnings(run_id))
    message = next(e["data"]["message"] for e in cloud.events(run_id, "warning") if e["data"]["code"] == "upload_waits")
    assert re.search(SAYS[kind], message), message
    assert cloud.row(run_id)["status"] == "running"
    if kind == "read-only":  # such a disk is only mended while nobody uses it
        a.stop()
    runs.mend()
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
    """What a cache holds that is neither an entry nor a note about one."""
    return [path for path in (root / ".cache" / "tmp").glob("*") if path.is_file() or any(path.iterdir())]


def test_a_run_goes_on_from_its_checkpoint_once_there_is_space_again(cloud, disk, host):
    """F14 (I8 I9): what was checkpointed before the disk was full is what the next attempt goes on from."""
    runs = disk("runs")
    a = host("a", {"seconds_per_epoch": 0.25, "checkpoint_bytes": 2 * MIB}, RUNS_DIR=runs.place)
    run_id = cloud.enqueue(epochs=12)
    cloud.wait_epoch(run_id, 3)
    runs.strike()
    wait_for(lambda: not a.trainings())
    runs.mend()

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] >= 2
    assert "resumed" in cloud.warnings(run_id)


def test_a_dataset_that_does_not_fit_is_not_trained_on_in_part(cloud, disk, host):
    """F14 (I6 I11): the cache's disk is full in the middle of a download; the cause is named, no part is left."""
    data = disk("data", mebibytes=40).place
    reference = stored_dataset(cloud)
    for number in range(3):
        picture = (cloud.data.parent / "images" / "train").glob("*").__next__().read_bytes()
        cloud.storage.put("datasets", f"set/images/train/large_{number}.png", picture.ljust(600_000, b"\0"))
        cloud.storage.put("datasets", f"set/labels/train/large_{number}.txt", b"0 0.5 0.5 0.2 0.2\n")
    a = host("a", QUICK, DATASET_ROOT=data)

    row = lives_on(cloud, a, cloud.enqueue(reference, epochs=2, max_attempts=1))

    assert any(word in row["error_message"].lower() for word in ("space", "disk", "full"))
    assert cloud.epochs(row["id"]) == {}
    assert not list((data / "datasets").glob("*"))


@pytest.mark.parametrize("kind", long_except(KINDS, "full"))
def test_a_failing_home_costs_the_protection_not_the_run(cloud, disk, host, kind):
    """F14 (I6 I8): neither journal nor service log can be written; the run is trained, published and delivered from memory."""
    home = disk("a", kind)
    others = home.place.parent
    host("a", {"seconds_per_epoch": 0.2}, RUNS_DIR=others / "runs", DATASET_ROOT=others / "sets")
    run_id = cloud.enqueue(epochs=8)
    cloud.wait_epoch(run_id, 2)
    home.strike()

    row = cloud.wait(run_id, "completed", "failed")

    assert row["status"] == "completed", row["error_message"]
    assert cloud.epochs(run_id) == {1: [1, 2, 3, 4, 5, 6, 7, 8]}


def test_a_training_that_may_not_have_its_memory_fails_and_names_it(cloud, host):
    """F15 (I6): a limit on the training process; the service lives on and says what was missing."""
    a = host("a", QUICK | {"seconds_to_start": 1.0, "eats": 900})
    run_id = cloud.enqueue(epochs=2, max_attempts=1)
    a.training().rlimit(psutil.RLIMIT_AS, (300 * MIB, 300 * MIB))

    row = lives_on(cloud, a, run_id)

    assert "memory" in row["error_message"].lower()
    a.behave(**QUICK)
    cloud.wait(cloud.enqueue(epochs=1), "completed")


def test_a_training_that_the_kernel_would_kill_for_memory_points_at_it(cloud, host):
    """F15 (I6 I9): SIGKILL from outside is most likely the out-of-memory killer; the sentence says what to change."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=10, max_attempts=1)
    cloud.wait_epoch(run_id, 2)
    a.training().kill()

    row = lives_on(cloud, a, run_id, "SIGKILL", "memory", "fewer workers or a smaller batch")

    assert row["attempt"] == 1
