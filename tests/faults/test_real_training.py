"""F1, F2, F13 with a real YOLO training: processes are killed, a service is stopped, and other hosts resume the run."""

import csv
import io

import pytest

from tests.faults.cloud import BUCKET
from tests.faults.hosts import gone
from tests.faults.test_checkpoint_cleanup import wait_for_cleanup
from tests.faults.test_finished import DAMAGES
from tests.long import long_except

EPOCHS = 12
CONFIGURATION = {
    "epochs": EPOCHS, "imgsz": 32, "batch": 4, "workers": 0, "compute": "cpu", "plots": False, "optimizer": "SGD",
    "lr0": 0.01, "lrf": 0.01, "warmup_epochs": 0, "mosaic": 0,
}  # fmt: skip


@pytest.mark.training
@pytest.mark.timeout(280)
@pytest.mark.long
def test_interrupted_real_training_has_each_epoch_once_in_results(cloud, host):
    """F1 F2 F13 (I1 I5 I6 I8 I9 I10): the training of host a is killed, service a is stopped, and service b is killed.
    The results of the four attempts have each epoch once, and the learning rate follows one schedule.
    """
    times = {"CHECKPOINT_INTERVAL": 0.2, "DRAIN_SECONDS": 60, "CANCEL_GRACE": 30}
    a = host("a", None, **times)
    run_id = cloud.enqueue(**CONFIGURATION)

    cloud.wait_epoch(run_id, 2, attempt=1, seconds=100)
    a.training().kill()

    _wait_for_another_epoch(cloud, run_id, attempt=2)
    processes = a.children()
    assert a.stop(seconds=60) == 0
    assert gone(processes)
    row = cloud.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert row["checkpoint"]["epoch"] >= max(cloud.epochs(run_id)[2])

    b = host("b", None, **times)
    _wait_for_another_epoch(cloud, run_id, attempt=3)
    assert gone(b.kill())

    c = host("c", None, **times)
    row = cloud.wait(run_id, "completed", "failed", seconds=100)

    assert row["status"] == "completed", row["error_message"]
    assert (row["attempt"], row["worker_id"]) == (4, "c")
    assert row["results"]["metrics"]["epoch"] == EPOCHS
    cloud.check_epochs(run_id, back=3)
    table = cloud.storage.get(BUCKET, f"training_runs/{run_id}/4/results.csv").decode()
    rows = [{name.strip(): value for name, value in line.items()} for line in csv.DictReader(io.StringIO(table))]
    assert [int(float(line["epoch"])) for line in rows] == list(range(1, EPOCHS + 1))
    rates = [float(line["lr/pg0"]) for line in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]
    for each in (a, b):
        each.start()
    wait_for_cleanup(cloud, run_id, a, b, c)


def _wait_for_another_epoch(cloud, run_id, attempt):
    """Wait until the attempt reports an epoch that no earlier attempt reported."""
    before = max(epoch for number, epochs in cloud.epochs(run_id).items() if number < attempt for epoch in epochs)
    cloud.wait_epoch(run_id, before + 1, attempt, seconds=100)


@pytest.mark.training
@pytest.mark.timeout(280)
@pytest.mark.parametrize("damage", long_except(["gone", "truncated", "zeroed"], "truncated"))
@pytest.mark.long
def test_damaged_model_of_real_training_is_rebuilt_from_checkpoint(cloud, host, damage):
    """F2 F3 (I8): the service is killed during the upload, and best.pt is damaged. No epoch is repeated."""
    a = host("a", None, CHECKPOINT_INTERVAL=0.2)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=10)
    run_id = cloud.enqueue(**CONFIGURATION | {"epochs": 3})
    cloud.wait_phase(run_id, "uploading", seconds=100)
    a.kill()
    best = a.run_dir(run_id) / "weights" / "best.pt"
    DAMAGES[damage](best)
    cloud.storage.faults.clear()

    a.start()
    row = cloud.wait(run_id, "completed", "failed", seconds=100)

    assert row["status"] == "completed", row["error_message"]
    assert row["attempt"] == 2
    cloud.check_published(row)
    assert {"model_damaged", "resumed"} <= set(cloud.warnings(run_id))
    assert cloud.epochs(run_id) == {1: [1, 2, 3]}
    published = next(artifact for artifact in row["results"]["artifacts"] if artifact["name"] == "best.pt")
    assert published["bytes"] > 5_000_000
    assert row["results"]["mAP"] is not None
