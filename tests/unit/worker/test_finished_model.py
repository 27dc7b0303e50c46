"""Publishing of finished models: retries, and attempts that only publish."""

import json
from dataclasses import replace

import pytest

from tests.unit.worker.harness import (
    assert_model_is_published,
    failing_store,
    in_background,
    interrupted_upload,
    output_of,
    wait_for,
)
from trainer.core.errors import BadRequest, HostFailed, MachineFailed, Misconfigured, ObjectMissing, Unavailable
from trainer.core.retry import RetryPolicy
from trainer.worker import publish

ERRORS = {
    "missing": ObjectMissing("object 'best.pt' does not exist in bucket 'b'"),
    "bad request": BadRequest("storage rejects the object name 'best.pt'"),
    "misconfigured": Misconfigured("bucket missing"),
    "machine failed": MachineFailed("/storage cannot be read or written: the disk is full"),
    "host failed": HostFailed("the disk is read-only"),
    "unavailable": Unavailable("storage does not answer"),
    "disk": OSError(28, "No space left on device"),
}


# ── reported epochs ──


def epochs(worker, run_id):
    return [e.data | {"attempt": e.attempt} for e in worker.queue.events(run_id) if e.kind == "epoch"]


@pytest.mark.parametrize("attempt", [0, 2])
def test_all_epochs_are_reported_if_last_reported_attempt_did_not_train_the_model(worker, attempt):
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

    assert_model_is_published(worker, run_id)
    assert [(e["attempt"], e["epoch"]) for e in epochs(worker, run_id)] == [(1, 1), (2, 2), (2, 3)]
    second = epochs(worker, run_id)[1]
    assert (second["metrics"], second["seconds"]) == ({"metrics/mAP50(B)": 0.4, "lr/pg0": 0.2}, 2.5)


@pytest.mark.parametrize(
    "table",
    ["", "epoch,time\n", "epoch,time,lr/pg0\n2,3,many\n", "epoch,time,lr/pg0\n" + "9999,1,1\n" * 9, None],
)
def test_model_is_published_if_results_csv_is_damaged(worker, table):
    run_id, run_dir = interrupted_upload(worker)
    worker.forget_epochs(run_id, after=1)
    worker.update_row(run_id, last_reported_epoch=1, last_reported_attempt=1)
    (run_dir / "results.csv").unlink()
    if table is None:
        (run_dir / "results.csv").symlink_to("/dev/zero")
    else:
        (run_dir / "results.csv").write_text(table)

    worker.work_again()

    assert_model_is_published(worker, run_id)
    assert [e["epoch"] for e in epochs(worker, run_id)] == [1]


# ── retries ──


@pytest.mark.parametrize("method", ["upload", "list"])
@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_store_or_disk_do_not_end_run_with_finished_model(worker, method, error):
    run_id = worker.enqueue()

    worker.work(store=failing_store(worker, method, [ERRORS[error]] * 12))

    row = assert_model_is_published(worker, run_id)
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
    run_dir = output_of(worker, run_id)
    assert (run_dir.parent / ".finished.json").exists()
    assert list((run_dir / "checkpoints").glob("*.pt"))
    worker.update_row(run_id, not_before=None)

    worker.work_again()

    assert_model_is_published(worker, run_id)
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

    assert_model_is_published(worker, run_id)


# ── finished models and changed rows ──


@pytest.mark.parametrize(
    ("configuration", "trainings"),
    [
        ({"epochs": 3, "compute": "cpu"}, 1),
        ({"epochs": 3, "compute": "cpu", "device": "0", "workers": 3}, 1),  # settings of the host
        ({"epochs": 5, "compute": "cpu"}, 2),
        ({"epochs": 3, "compute": "cpu", "lr0": 0.5}, 2),
        ({"epochs": "many"}, 1),  # this plan cannot be trained, but the model exists
    ],
)
def test_finished_model_is_published_only_if_row_requests_same_training(worker, configuration, trainings):
    run_id, _ = interrupted_upload(worker)
    worker.update_row(run_id, configuration=configuration)

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert len(worker.trainer.orders) == trainings
    assert len(worker.warnings(run_id, "settings_changed")) == trainings - 1


def test_model_finished_by_other_service_version_is_published(worker):
    """Another version of the service can record other warnings, the settings in another order, and default values."""
    run_id, run_dir = interrupted_upload(worker)
    marker = json.loads((run_dir.parent / ".finished.json").read_text())
    plan = marker["report"]["plan"]
    plan |= {
        "warnings": ["another message"],
        "chosen": plan["chosen"][::-1],
        "later": 1,
        "args": plan["args"] | {"patience": 100},
    }
    (run_dir.parent / ".finished.json").write_text(json.dumps(marker))

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert len(worker.trainer.orders) == 1
    assert worker.warnings(run_id, "settings_changed") == []


def test_model_trained_with_smaller_batch_size_is_published_without_new_training(worker):
    worker.trainer.batch = 4
    run_id, _ = interrupted_upload(worker)

    worker.work_again()

    assert len(worker.trainer.orders) == 1
    results = worker.row(run_id)["results"]
    assert (results["plan"]["batch"], results["plan"]["asked_batch"]) == (4, 16)
    assert "batch" not in results


def test_last_weights_are_the_model_if_no_epoch_was_the_best(worker):
    """Example: every fitness was NaN, so Ultralytics wrote no best.pt."""
    train = worker.trainer.train

    def train_without_best(order, *arguments):
        finished = train(order, *arguments)
        (order.run_dir / "weights" / "best.pt").unlink()
        return replace(finished, best=None)

    worker.trainer.train = train_without_best
    run_id = worker.enqueue()

    worker.work()

    row = worker.row(run_id)
    assert row["status"] == "completed"
    assert row["trained_model_url"] == worker.artifacts(run_id)["last.pt"]["url"]
    assert "best.pt" not in worker.artifacts(run_id)
