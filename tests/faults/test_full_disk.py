"""F14, F15: the disk is full, or the memory is."""

import os
import subprocess
from contextlib import contextmanager

import psutil
import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.test_killed import stored_dataset

MIB = 2**20


@contextmanager
def small_disk(place, mebibytes, options=""):
    place.mkdir()
    size = ",".join(part for part in (f"size={mebibytes}m", options) if part)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        if os.environ.get("CI"):
            raise AssertionError(done.stderr)
        pytest.skip("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def disk(tmp_path):
    """Makes small disks; hosts that use them must have ended before."""
    opened = []

    def make(name, mebibytes, options=""):
        opened.append(small_disk(tmp_path / name, mebibytes, options))
        return opened[-1].__enter__()

    yield make
    for each in opened:
        each.__exit__(None, None, None)


def fill(place):
    """Every byte of it; the file that holds them."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for piece in (MIB, 1):
            with pytest.raises(OSError, match="No space left"):
                _write_for_ever(file, b"." * piece)
    return filler


def _write_for_ever(file, piece):
    while True:
        file.write(piece)


def lives_on(cloud, a, run_id, *said):
    """The run failed naming the cause, nothing half-written is left, and the service works on the next run."""
    row = cloud.wait(run_id, "failed", seconds=60)
    for words in said:
        assert words in row["error_message"]
    assert a.process.poll() is None
    a.wait_idle()
    return row


def test_a_disk_that_is_too_full_to_train_is_said_before_the_training(cloud, disk, host):
    """F14 (I6): RUNS_DIR has less than a training needs; said with numbers, and no training was started."""
    runs = disk("runs", 20)
    a = host("a", QUICK, RUNS_DIR=runs)

    row = lives_on(cloud, a, cloud.enqueue(epochs=2, max_attempts=1), "MiB free", "needs about", "RUNS_DIR")

    assert cloud.epochs(row["id"]) == {}


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_disk_that_fills_up_while_it_trains_fails_that_run_only(cloud, disk, host, when):
    """F14 (I6 I8): no room for checkpoints, results and the log; the cause is in the row, the service goes on."""
    runs = disk("runs", 230)
    a = host("a", {"seconds_per_epoch": 0.3, "checkpoint_bytes": 4 * MIB}, RUNS_DIR=runs)
    run_id = cloud.enqueue(epochs=40, max_attempts=1)
    if when == "during":
        cloud.wait_epoch(run_id, 2)
    else:
        a.training()
    filler = fill(runs)

    row = lives_on(cloud, a, run_id, "disk", "full")

    assert "No space left" in row["error_message"]
    filler.unlink()
    a.behave(**QUICK)
    cloud.wait(cloud.enqueue(epochs=2), "completed")


def test_a_run_goes_on_from_its_checkpoint_once_there_is_space_again(cloud, disk, host):
    """F14 (I8 I9): what was checkpointed before the disk was full is what the next attempt goes on from."""
    runs = disk("runs", 260)
    a = host("a", {"seconds_per_epoch": 0.25, "checkpoint_bytes": 2 * MIB}, RUNS_DIR=runs)
    run_id = cloud.enqueue(epochs=12)
    cloud.wait_epoch(run_id, 3)
    filler = fill(runs)
    wait_for(lambda: not a.trainings())
    filler.unlink()

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] >= 2
    assert "resumed" in cloud.warnings(run_id)


def test_a_dataset_that_does_not_fit_is_not_trained_on_in_part(cloud, disk, host):
    """F14 (I6 I11): the cache's disk is full in the middle of a download; the cause is named, no part is left."""
    data = disk("data", 1)
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


def test_a_disk_without_inodes_is_named(cloud, disk, host):
    """F14 (I6): there is space, but no file can be made."""
    runs = disk("runs", 230, "nr_inodes=5")
    a = host("a", QUICK, RUNS_DIR=runs)

    row = lives_on(cloud, a, cloud.enqueue(epochs=2, max_attempts=1))

    assert "space" in row["error_message"] or "log" in row["error_message"]


def test_a_full_home_costs_the_protection_not_the_run(cloud, disk, host):
    """F14 (I6 I8): neither journal nor service log can be written; the run is trained, published and delivered from memory."""
    home = disk("a", 30)
    host("a", {"seconds_per_epoch": 0.2}, RUNS_DIR=home.parent / "runs", DATASET_ROOT=home.parent / "sets")
    run_id = cloud.enqueue(epochs=8)
    cloud.wait_epoch(run_id, 2)
    fill(home)

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
