"""The real command assigns GPUs to runs; the GPUs and the training are fake."""

import re
import time

import pytest

from tests.acceptance.service import running

PRINTS_GPUS = {"FAKE_TRAINING": "prints_its_environment.py"}


def finish(service, run_id):
    service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)
    service.run("finish", run_id)
    service.wait(run_id, "completed")


def gpus_of(service, run_id):
    """Return the GPUs that the training process could see."""
    return re.search(r"environment CUDA_VISIBLE_DEVICES=(\S*)", service.run("logs", run_id).stdout)[1]


def test_each_run_has_its_own_gpu(home, data):
    with running(home, {"seconds_per_epoch": 0.3}, PRETENDED_GPUS=2, **PRINTS_GPUS) as service:
        runs = [service.enqueue(data, epochs=500) for _ in range(3)]
        service.wait_until(runs[1], lambda row: row["progress_epoch"] >= 1)
        assert service.row(runs[2])["status"] == "queued"
        for run in runs:
            finish(service, run)

        assert sorted(gpus_of(service, run) for run in runs[:2]) == ["0", "1"]


@pytest.mark.long
def test_run_on_two_gpus_stays_queued_until_both_are_free(home, data):
    with running(home, {"seconds_per_epoch": 0.4}, PRETENDED_GPUS=2, **PRINTS_GPUS) as service:
        small = service.enqueue(data, epochs=500)
        service.wait_until(small, lambda row: row["progress_epoch"] >= 1)
        large = service.enqueue(data, epochs=500, device="0,1")
        time.sleep(0.5)
        assert service.row(large)["status"] == "queued", "the run must wait for a second GPU"
        finish(service, small)
        service.wait_until(large, lambda row: row["progress_epoch"] >= 1)
        after = service.enqueue(data, epochs=1)
        time.sleep(0.5)
        assert service.row(after)["status"] == "queued", "the run must wait for a free GPU"
        finish(service, large)
        service.wait(after, "completed")

        assert gpus_of(service, large) == "0,1"
        assert service.row(large)["status"] == "completed"


def test_run_that_needs_more_gpus_than_the_host_has_stays_queued(home, data):
    with running(home, {}, PRETENDED_GPUS=2, **PRINTS_GPUS) as service:
        left = [
            service.enqueue(data, epochs=1, device="0,1,2"),
            service.enqueue(data, epochs=1, requires={"gpus": 3}),
            service.enqueue(data, epochs=1, requires={"gpu_memory_gb": 80}),
        ]
        service.wait(service.enqueue(data, epochs=1, requires={"gpus": 2, "gpu_memory_gb": 24}), "completed")

        assert [service.row(run)["status"] for run in left] == ["queued"] * 3


def test_cuda_visible_devices_limits_the_gpus(home, data):
    with running(home, {}, PRETENDED_GPUS=4, CUDA_VISIBLE_DEVICES="2,3", **PRINTS_GPUS) as service:
        run = service.enqueue(data, epochs=1, device="0,1")
        service.wait(run, "completed")

        assert gpus_of(service, run) == "2,3"


def test_second_slot_does_not_count_as_second_gpu(home, data):
    with running(home, {"seconds_per_epoch": 0.4}, PRETENDED_GPUS=1, SLOTS=2, **PRINTS_GPUS) as service:
        left = service.enqueue(data, epochs=1, device="0,1")
        runs = [service.enqueue(data, epochs=500) for _ in range(2)]
        service.wait_until(runs[1], lambda row: row["progress_epoch"] >= 1)
        assert service.row(runs[0])["status"] == "running"
        for run in runs:
            finish(service, run)

        assert [gpus_of(service, run) for run in runs] == ["0", "0"]
        assert service.row(left)["status"] == "queued"


def test_run_with_fewer_gpus_than_requested_gets_a_warning(home, data):
    with running(home, {}, PRETENDED_GPUS=2, **PRINTS_GPUS) as service:
        # the queue reads `device`, but not `Device`
        run = service.enqueue(data, epochs=1, Device="0,1")
        service.wait(run, "completed")

        assert gpus_of(service, run) == "0"
        assert "requests GPU [0, 1], but is trained on 1 free GPU(s) of this worker" in service.run("logs", run).stdout


@pytest.mark.training
@pytest.mark.long
def test_real_training_on_two_devices_survives_restart(home, data):
    ranks = {"FAKE_TRAINING": "../../training/programs/ranks_on_cpu.py", "LEASE_SECONDS": 30, "PRETENDED_GPUS": 2}
    ask = {"device": "0,1", "batch": 4, "imgsz": 64, "workers": 0, "plots": False}
    with running(home, {}, **ranks) as service:
        run = service.enqueue(data, epochs=4, **ask)
        service.wait_until(run, lambda row: row["progress_epoch"] >= 2, seconds=120)
        assert service.stop(seconds=60) == 0
        assert service.row(run)["status"] == "queued"
        assert service.row(run)["checkpoint"]["epoch"] >= 2

        service.start()
        row = service.wait(run, "completed", "failed", seconds=120)

        assert (row["status"], row["error_message"]) == ("completed", None)
        assert (row["attempt"], row["results"]["epochs_completed"]) == (2, 4)
        assert {"best.pt", "last.pt", "results.csv", "run.log"} <= {a["name"] for a in row["results"]["artifacts"]}
        log = service.run("logs", run).stdout
        assert log.count("rank 1 of 2 trains") == 2, "rank 1 must train in both attempts"


def test_run_on_two_gpus_stays_queued_without_gpus(home, data):
    with running(home, {}) as service:
        left = service.enqueue(data, epochs=1, device="0,1")
        service.wait(service.enqueue(data, epochs=1, device="0"), "completed")

        assert service.row(left)["status"] == "queued"
