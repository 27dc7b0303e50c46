"""The execution of one run, from its lease to its outcome."""

import hashlib
import json
import os
import threading

import pytest

from tests.unit.worker.fakes import Replaced, raising
from tests.unit.worker.harness import BUCKET, output_of
from trainer.core.dataset import ObjectRef
from trainer.core.errors import DatasetError, MachineFailed, Misconfigured, RunFailed, Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.worker import fetching


def test_run_completes_with_results(worker):
    run_id = worker.enqueue()

    worker.work()

    row = worker.row(run_id)
    results = row["results"]
    assert row["status"] == "completed"
    assert (results["mAP"], results["metrics"]) == (0.5, {"metrics/mAP50(B)": 0.7, "epoch": 3})
    assert results["progress"]["percent"] == 100.0
    assert results["run_dir"] == str(output_of(worker, run_id))
    assert results["plan"]["epochs"] == 3
    assert results["dataset"] == {"images": {"train": 4}}
    assert row["error_message"] is None


def test_row_has_path_checksum_and_size_of_each_artifact(worker, tmp_path):
    run_id = worker.enqueue()
    worker.work()
    row = worker.row(run_id)
    artifacts = {artifact["name"]: artifact for artifact in row["results"]["artifacts"]}

    assert row["trained_model_url"] == artifacts["best.pt"]["url"]
    assert {"best.pt", "last.pt", "results.csv", "run.log", "manifest.json"} <= set(artifacts)
    for name, artifact in artifacts.items():
        assert artifact["path"] == f"training_runs/{run_id}/1/{name}"
        copy = tmp_path / "copy"
        worker.store.download(ObjectRef(bucket=BUCKET, key=artifact["path"]), copy, StopSignal())
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == artifact["sha256"]
        assert copy.stat().st_size == artifact["bytes"]


def test_manifest_lists_all_artifacts_except_itself(worker, tmp_path):
    run_id = worker.enqueue()
    worker.work()
    worker.store.download(
        ObjectRef(bucket=BUCKET, key=f"training_runs/{run_id}/1/manifest.json"), tmp_path / "m", StopSignal(),
    )  # fmt: skip

    manifest = json.loads((tmp_path / "m").read_text())

    published = {artifact["name"] for artifact in worker.row(run_id)["results"]["artifacts"]}
    assert {artifact["name"] for artifact in manifest["artifacts"]} == published - {"manifest.json"}


def test_events_are_stored_once_and_in_order(worker):
    run_id = worker.enqueue()

    worker.work()

    kinds = worker.kinds(run_id)
    assert kinds.count("epoch") == 3
    assert kinds.count("checkpoint") == 3
    assert kinds.index("phase") < kinds.index("epoch")
    assert [event.seq for event in worker.queue.events(run_id)] == list(range(1, len(kinds) + 1))


def test_error_of_invalid_request_lists_every_problem(worker):
    run_id = worker.enqueue({"epochs": 0, "batch": "many"})

    worker.work()

    row = worker.row(run_id)
    assert row["status"] == "failed"
    assert "epochs" in row["error_message"]
    assert "batch" in row["error_message"]
    assert worker.trainer.orders == []


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
def test_kind_of_error_decides_whether_run_is_retried(worker, monkeypatch, error, status):
    monkeypatch.setattr(fetching, "FETCH_RETRIES", RetryPolicy(tries=1))
    run_id = worker.enqueue()
    worker.datasets.error = error

    worker.work()

    row = worker.row(run_id)
    assert row["status"] == status
    assert str(error).split("] ")[-1].split(":")[0] in row["error_message"]


def test_dataset_download_is_retried_during_outage(worker):
    run_id = worker.enqueue()
    prepare, outage = worker.datasets.prepare, raising(*[Unavailable("storage is down")] * 3)

    def prepare_later(*arguments):
        outage()
        return prepare(*arguments)

    worker.datasets.prepare = prepare_later
    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert worker.warnings(run_id, "fetch_waits") == ["Download failed, retrying: storage is down"]
    assert worker.kinds(run_id).count("warning") == 1


def test_failed_training_publishes_its_log(worker):
    run_id = worker.enqueue()

    worker.fail_in(2, RunFailed("the loss is not a number"))
    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["error_message"]) == ("failed", "the loss is not a number")
    assert row["trained_model_url"] is None
    assert "run.log" in worker.artifacts(run_id)
    assert row["results"]["metrics"]["epoch"] == 1


def test_upload_is_retried_until_bucket_exists(worker):
    run_id = worker.enqueue()
    fail = raising(Misconfigured("bucket missing"))

    def upload(*arguments, **more):
        fail()
        return worker.store.upload(*arguments, **more)

    worker.work(store=Replaced(worker.store, upload=upload))

    assert worker.row(run_id)["status"] == "completed"
    assert worker.warnings(run_id, "upload_waits") == ["Upload failed, retrying: bucket missing"]


def test_slot_is_free_during_upload(worker):
    worker.enqueue()
    free = []

    def upload(*arguments, **more):
        free.append(worker.slots.free)
        return worker.store.upload(*arguments, **more)

    worker.work(store=Replaced(worker.store, upload=upload))

    assert set(free) == {1}


def test_dataset_view_is_removed_after_run(worker):
    worker.enqueue()

    worker.work()

    assert list(worker.folders.views.iterdir()) == []


def test_run_leaves_no_thread(worker):
    before = threading.active_count()
    worker.enqueue()

    worker.work()

    assert threading.active_count() <= before


def test_deeply_nested_checkpoint_folders_do_not_fail_finished_training(worker):
    def nest(epoch):
        at = os.open(worker.trainer.orders[-1].run_dir / "checkpoints", os.O_RDONLY) if epoch == 3 else None
        for _ in range(1200 if at else 0):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        if at:
            os.close(at)

    worker.trainer.during = nest
    run_id = worker.enqueue()
    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert not (output_of(worker, run_id) / "checkpoints").exists()
