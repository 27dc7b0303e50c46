"""A run as the web app knows it: inserted over REST, dataset and model in buckets, trained by the real service."""

import hashlib
import time
import uuid

import httpx
import pytest
from supabase_demo import insert_run, service_environment, storage_beside, upload_dataset

from trainer.demo import draw_dataset, running_service

IMAGES = 250  # three pages of a listing at Storage's default of 100
CONFIGURATION = {"epochs": 1, "batchSize": 32, "imgSize": 32, "compute": "cpu", "device": "cpu", "workers": 0}


def ended(stack, run_id, log, seconds=240):
    """The row, once it has ended."""
    deadline = time.monotonic() + seconds
    while True:
        row = stack.rows(f"select * from training_runs where id = '{run_id}'")[0]
        if row["status"] in ("completed", "failed", "canceled"):
            return row
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.3)


@pytest.mark.training
def test_a_run_and_one_that_goes_on_from_its_model(supabase, tmp_path):
    log = tmp_path / "service.log"
    with storage_beside(supabase) as storage:
        dataset = draw_dataset(tmp_path / "drawn", images=IMAGES, size=32).parent
        reference = upload_dataset(storage, dataset, f"{uuid.uuid4()}/{uuid.uuid4()}")
        environment = service_environment(supabase, tmp_path / "home", LOG_FORMAT="json")
        with log.open("ab") as out, running_service(environment, out):
            first = ended(supabase, insert_run(supabase, reference, "yolo11n.yaml", CONFIGURATION), log)
            assert first["status"] == "completed", first["error_message"]
            second = ended(supabase, insert_run(supabase, reference, first["id"], CONFIGURATION), log)
            assert second["status"] == "completed", second["error_message"]
        for row in (first, second):
            check_row(row)
            check_artifacts(storage, row)
            check_history(supabase, row)
    worker = supabase.rows("select * from trainer_workers")[0]
    assert worker["status"] == "online"
    assert worker["cpu_model"]
    assert supabase.service_key not in log.read_text()
    assert supabase.service_key not in str([first, second])


def check_row(row):
    """What the web app reads."""
    results = row["results"]
    assert isinstance(results["mAP"], float)
    assert isinstance(results["precision"], float)
    assert isinstance(results["recall"], float)
    assert int(results["metrics"]["epoch"]) == 1
    assert results["progress"]["total_epochs"] == 1
    assert sum(results["dataset"]["images"].values()) == IMAGES
    assert (row["attempt"], row["failures"], row["lease_expires_at"], row["error_message"]) == (1, 0, None, None)
    assert row["started_at"] < row["completed_at"]


def check_artifacts(storage, row):
    """Each is where the row says, and opens in a browser; the model is the one that was trained."""
    stored = storage.objects["training-artifacts"]
    artifacts = {artifact["name"]: artifact for artifact in row["results"]["artifacts"]}
    assert {"best.pt", "last.pt", "results.csv"} <= set(artifacts)
    for artifact in artifacts.values():
        assert artifact["path"].startswith(f"training_runs/{row['id']}/1/")
        assert artifact["path"] in stored
    with httpx.Client() as browser:
        model = browser.get(row["trained_model_url"]).raise_for_status().content
    assert model == storage.get("training-artifacts", artifacts["best.pt"]["path"])
    assert hashlib.sha256(model).hexdigest() in str(row["results"])


def check_history(stack, row):
    events = stack.rows(f"select * from training_run_events where run_id = '{row['id']}' order by attempt, seq")
    assert {event["attempt"] for event in events} == {1}
    assert {"phase", "epoch"} <= {event["kind"] for event in events}
    phases = [event["data"]["phase"] for event in events if event["kind"] == "phase"]
    assert phases[0] == "preparing"
    assert phases[-1] == "uploading"
