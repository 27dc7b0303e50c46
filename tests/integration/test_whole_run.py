"""A whole run over Supabase: a row from the web app, a dataset in one bucket, and artifacts in another bucket."""

import contextlib
import hashlib
import json
import time

import httpx
import pytest

from tests.acceptance.service import Service, running
from tests.integration.whole_supabase import WebApp, put_dataset, settings_for, storage_for
from trainer.demo import draw_dataset


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn"), images=250, size=32).parent


@pytest.fixture
def storage(supabase):
    with storage_for(supabase) as storage:
        yield storage


@pytest.fixture
def app(supabase):
    with WebApp(supabase) as app:
        yield app


def wait(app, run_id, *statuses, seconds=90):
    deadline, row = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        # a gateway answers 502 for a moment after its server has restarted
        with contextlib.suppress(httpx.HTTPStatusError):
            row = app.row(run_id)
            if row["status"] in statuses:
                return row
        time.sleep(0.2)
    raise AssertionError(f"after {seconds} s: {json.dumps(row)[:3000]}")


def test_row_from_web_app_becomes_model_in_bucket(supabase, storage, app, drawn, tmp_path):
    data_yaml = put_dataset(storage, drawn)
    with running(tmp_path / "home", {}, WORKER_ID="gpu-1", **settings_for(supabase)) as service:
        run_id = app.insert(data_yaml, epochs=3, batchSize=8, imgSize=32)
        row = wait(app, run_id, "completed", "failed")
        assert row["status"] == "completed", row["error_message"]
        worker = app.worker("gpu-1")
        assert service.stop() == 0

    results = row["results"]
    assert results["dataset"]["images"] == {"train": 200, "val": 50}
    assert isinstance(results["mAP"], float)
    assert results["metrics"]["epoch"] == 3
    assert worker["ram_gb"] > 0
    assert {event["kind"] for event in app.events(run_id)} >= {"phase", "epoch", "checkpoint"}
    model = httpx.get(row["trained_model_url"]).raise_for_status().content
    best = next(artifact for artifact in results["artifacts"] if artifact["name"] == "best.pt")
    assert hashlib.sha256(model).hexdigest() == best["sha256"]
    assert best["path"] == f"training_runs/{run_id}/1/best.pt"
    assert storage.get("training-artifacts", best["path"]) == model
    assert "//storage" not in row["trained_model_url"].removeprefix("http://")


def test_web_app_insert_with_blank_values_completes(supabase, storage, app, drawn, tmp_path):
    data_yaml = put_dataset(storage, drawn)
    with running(tmp_path / "home", {}, **settings_for(supabase)):
        run_id = app.insert_from_dialog(data_yaml, epochs=2, imgSize=32, batchSize=None)
        row = wait(app, run_id, "completed", "failed")

    assert row["status"] == "completed", row["error_message"]
    plan = row["results"]["plan"]
    assert plan["sources"] == [data_yaml]
    assert (plan["epochs"], plan["batch"], plan["imgsz"], plan["device"]) == (2, 16, 32, [])
    asked = {"lr0": 0.001, "optimizer": "Adam", "hsv_h": 0, "mosaic": 1, "mixup": 0, "fliplr": 0.5}
    assert {name: value for name, value in plan["args"].items() if name != "workers"} == asked
    assert {"batch", "lr0", "optimizer"} <= set(plan["chosen"]) <= {"batch", "lr0", "optimizer", "workers"}
    assert plan["warnings"] == []


def test_second_run_on_dataset_downloads_no_image(supabase, storage, app, drawn, tmp_path):
    data_yaml = put_dataset(storage, drawn)
    with running(tmp_path / "home", {}, **settings_for(supabase)):
        wait(app, app.insert(data_yaml, epochs=1), "completed")
        fetched = [line for line in storage.requests if line.startswith("GET ") and "/datasets/" in line]
        assert len(fetched) >= 500
        storage.requests.clear()

        wait(app, app.insert(data_yaml, epochs=1), "completed")

    assert not [line for line in storage.requests if line.startswith("GET ") and "/images/" in line]


def test_base_model_may_be_id_of_completed_run(supabase, storage, app, drawn, tmp_path):
    """The fake training writes no real weights, so the second run can fail after the download of the file."""
    data_yaml = put_dataset(storage, drawn)
    with running(tmp_path / "home", {}, **settings_for(supabase)):
        first = app.insert(data_yaml, epochs=1)
        wait(app, first, "completed")
        second = app.insert(data_yaml, base_model=first, epochs=1)

        row = wait(app, second, "completed", "failed")

    assert row["status"] == "completed" or first in row["error_message"]
    assert f"GET /object/authenticated/training-artifacts/training_runs/{first}/1/best.pt" in " ".join(
        storage.requests,
    ) or [line for line in storage.requests if line.startswith("GET") and f"{first}/1/best.pt" in line]


def test_cancel_by_app_stops_training(supabase, storage, app, drawn, tmp_path):
    data_yaml = put_dataset(storage, drawn)
    with running(tmp_path / "home", {"seconds_per_epoch": 0.5}, **settings_for(supabase)):
        run_id = app.insert(data_yaml, epochs=500)
        wait(app, run_id, "running")
        app.cancel(run_id)

        row = wait(app, run_id, "canceled")

    assert row["canceled_at"]
    assert row["trained_model_url"] is None


def test_error_names_missing_object(supabase, storage, app, tmp_path):
    with running(tmp_path / "home", {}, **settings_for(supabase)):
        row = wait(app, app.insert("storage:datasets/nobody/data.yaml"), "failed")

    assert "nobody/data.yaml" in row["error_message"]


@pytest.mark.parametrize("configuration", ["nonsense", [1, 2], 7, None], ids=["text", "list", "number", "null"])
def test_run_fails_if_configuration_is_neither_object_nor_null(supabase, storage, app, drawn, tmp_path, configuration):
    data_yaml = put_dataset(storage, drawn)
    with running(tmp_path / "home", {}, **settings_for(supabase)):
        row = {"run_name": "odd", "data_yaml": data_yaml, "base_model": "yolo11n.yaml", "configuration": configuration}
        run_id = app._changed("POST", {}, {**row, "status": "queued"})[0]["id"]

        row = wait(app, run_id, "failed", "completed")

    if configuration is None:
        assert row["status"] == "completed"
    else:
        assert "configuration" in row["error_message"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"SUPABASE_SERVICE_ROLE_KEY": "anon"}, "public key"),
        ({"SUPABASE_SERVICE_ROLE_KEY": "sb_secret_wrong"}, "key"),
        ({"SUPABASE_URL": "http://127.0.0.1:9"}, "127.0.0.1:9"),
    ],
    ids=["anonymous key", "wrong key", "wrong URL"],
)
def test_wrong_url_or_key_is_logged_and_service_keeps_running(supabase, storage, tmp_path, change, says):
    settings = settings_for(supabase) | change
    if settings["SUPABASE_SERVICE_ROLE_KEY"] == "anon":
        settings["SUPABASE_SERVICE_ROLE_KEY"] = supabase.anon_key
    service = Service(tmp_path / "home", {}, **settings)
    service.start()
    try:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            lines = [line for line in service.lines() if line["level"] == "error"]
            if lines:
                break
            time.sleep(0.1)
        assert says in lines[0]["error"]
        assert settings["SUPABASE_SERVICE_ROLE_KEY"] not in service.log.read_text()
        assert service.process.poll() is None
    finally:
        service.stop()


def test_service_started_during_outage_completes_run_after_outage(supabase, storage, app, drawn, tmp_path):
    data_yaml = put_dataset(storage, drawn)
    run_id = app.insert(data_yaml, epochs=1)
    supabase.postgrest.stop()
    try:
        service = Service(tmp_path / "home", {}, **settings_for(supabase)).start()
        time.sleep(3)
        assert service.process.poll() is None
    finally:
        supabase.postgrest.start()
    try:
        wait(app, run_id, "completed")
    finally:
        service.stop()


@pytest.mark.training
@pytest.mark.long
def test_real_training_and_fine_tuning_complete_over_supabase(supabase, storage, app, tmp_path):
    data_yaml = put_dataset(storage, draw_dataset(tmp_path / "drawn", images=12, size=64).parent)
    common = {"epochs": 1, "batchSize": 4, "imgSize": 64, "workers": 0, "plots": False}
    with running(tmp_path / "home", None, LEASE_SECONDS=30, **settings_for(supabase)):
        first = app.insert_from_dialog(data_yaml, **common)
        row = wait(app, first, "completed", "failed", seconds=240)
        assert row["status"] == "completed", row["error_message"]

        row = wait(app, app.insert(data_yaml, base_model=first, **common), "completed", "failed", seconds=240)

    assert row["status"] == "completed", row["error_message"]
    assert row["results"]["plan"]["model"] == {"kind": "run", "run_id": first}
