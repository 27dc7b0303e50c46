"""The real command serves a local queue."""

import os
import time

import psutil
import pytest

from tests.acceptance.service import Service, running
from trainer.jobs.sqlite import SqliteQueue


def test_inserted_run_completes(home, data):
    with running(home, {}) as service:
        run_id = service.enqueue(data, epochs=3)
        row = service.wait(run_id, "completed")

    assert row["results"]["progress"]["percent"] == 100.0
    assert row["started_at"] <= row["completed_at"]
    published = {artifact["name"] for artifact in row["results"]["artifacts"]}
    assert {"best.pt", "last.pt", "results.csv", "args.yaml", "run.log", "manifest.json"} <= published
    assert row["trained_model_url"].endswith(f"/training_runs/{run_id}/1/best.pt")
    assert os.path.exists(row["trained_model_url"].removeprefix("file://"))


def test_first_log_line_names_the_queue(home):
    with running(home, {}) as service:
        deadline = time.monotonic() + 10
        while not service.lines() and time.monotonic() < deadline:
            time.sleep(0.05)

        assert service.lines()[0]["event"] == "service starts"
        assert str(home) in service.lines()[0]["backend"]
        assert service.stop() == 0


def test_progress_and_metrics_of_running_run_are_in_its_row(home, data):
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=6)
        row = service.wait_until(run_id, lambda row: ((row["results"] or {}).get("metrics") or {}).get("epoch", 0) >= 2)

        assert row["status"] == "running"
        assert row["worker_id"]
        assert 0 < row["results"]["progress"]["percent"] < 100
        assert row["results"]["progress"]["total_epochs"] == 6


def test_cancel_stops_training_and_service_continues(home, data):
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=100)
        service.wait_until(run_id, lambda row: ((row["results"] or {}).get("metrics") or {}).get("epoch", 0) >= 1)
        assert service.json("cancel", run_id)["status"] == "canceling"
        asked = time.monotonic()

        row = service.wait(run_id, "canceled")

        assert time.monotonic() - asked < 5
        assert (row["error_message"], row["trained_model_url"]) == ("Canceled by user.", None)
        assert "last.pt" in {artifact["name"] for artifact in row["results"]["artifacts"]}
        assert service.children() == []
        service.behave()
        service.wait(service.enqueue(data, epochs=1), "completed")


def test_training_that_ignores_cancel_is_killed(home, data):
    with running(
        home, {"seconds_per_epoch": 0.5, "ignores_stop": True, "ignores_signals": True}, CANCEL_GRACE=1
    ) as service:
        run_id = service.enqueue(data, epochs=100)
        service.wait_until(run_id, lambda row: ((row["results"] or {}).get("metrics") or {}).get("epoch", 0) >= 1)
        service.run("cancel", run_id)

        service.wait(run_id, "canceled", seconds=15)

        assert service.children() == []


def test_queued_run_is_canceled_at_once(home, data):
    service = Service(home, {})
    run_id = service.enqueue(data)

    assert service.json("cancel", run_id)["status"] == "canceled"


def test_finish_completes_run_early(home, data):
    with running(home, {"seconds_per_epoch": 0.4}) as service:
        run_id = service.enqueue(data, epochs=200)
        service.wait_until(run_id, lambda row: ((row["results"] or {}).get("metrics") or {}).get("epoch", 0) >= 1)
        service.run("finish", run_id)

        row = service.wait(run_id, "completed")

        assert row["results"]["metrics"]["epoch"] < 200
        assert row["trained_model_url"]


def test_logs_follow_prints_until_run_ends(home, data):
    with running(home, {"seconds_per_epoch": 0.3}) as service:
        run_id = service.enqueue(data, epochs=4)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)

        followed = service.run("logs", run_id, "--follow").stdout

        assert service.row(run_id)["status"] == "completed"
        assert "epoch: epoch=4" in followed
        assert all(line.startswith("[20") for line in followed.splitlines())
        assert followed == service.json("logs", run_id)["log"]


@pytest.mark.long
def test_third_run_stays_queued_while_two_slots_are_busy(home, data):
    with running(home, {"seconds_per_epoch": 0.5}, SLOTS=2) as service:
        runs = [service.enqueue(data, epochs=epochs) for epochs in (500, 500, 1)]
        for run in runs[:2]:
            service.wait_until(run, lambda row: row["progress_epoch"] >= 1)
        queue = SqliteQueue(home / "queue.db")

        assert [queue.get(run).status for run in runs] == ["running", "running", "queued"]
        for run in runs[:2]:
            queue.request_finish(run)
        for run in runs:
            service.wait(run, "completed")


def test_idle_service_uses_little_memory_and_does_not_load_torch(home):
    with running(home, {}) as service:
        time.sleep(2)
        process = psutil.Process(service.process.pid)

        assert process.memory_info().rss < 80 * 2**20
        assert not [part for part in process.memory_maps() if "torch" in part.path]


@pytest.mark.training
def test_real_training_of_queued_run_publishes_artifacts(home, data):
    with running(home) as service:
        run_id = service.enqueue(data, epochs=1, imgsz=64, batch=4, workers=0, compute="cpu")
        row = service.wait(run_id, "completed", "failed", seconds=240)

    assert row["status"] == "completed", row["error_message"]
    published = {artifact["name"] for artifact in row["results"]["artifacts"]}
    assert {"best.pt", "last.pt", "results.csv", "results.png", "args.yaml", "labels.jpg", "run.log"} <= published
    assert isinstance(row["results"]["mAP"], float)
    assert row["results"]["metrics"]["epoch"] == 1
