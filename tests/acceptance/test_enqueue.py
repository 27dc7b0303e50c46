"""`enqueue` refuses invalid runs, and `requeue` accepts only ended runs."""

import json
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.service import Service
from trainer.core.errors import BadRequest
from trainer.core.job import RunRequest
from trainer.core.ports import Worker
from trainer.jobs.sqlite import SqliteQueue
from trainer.settings import Settings
from trainer.wiring.datasets import check_request


@pytest.fixture
def service(tmp_path):
    return Service(tmp_path / "home", {})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epochs", "0"], ["epochs = 0: must be"]),
        (["--config", '{"epochs": 0, "lr0": "fast"}'], ["epochs = 0: must be", "lr0 = "]),
        (["--data", "/nowhere/data.yaml"], ["'/nowhere/data.yaml' does not exist or cannot be read on this host"]),
        (["epochs=0", "batch=many"], ["epochs = 0: must be", "batch = 'many': must be"]),
        (["epochs=3", "--epochs", "4"], ["epochs is given twice: 3 and 4"]),
        (["fast"], ["fast: write NAME=VALUE, for example epochs=50"]),
        (["epochs="], ["epochs=: write NAME=VALUE, for example epochs=50"]),
        (["model=yolo99"], ["base_model = 'yolo99': the model is unknown; similar names:"]),
        (["model=cats.pt"], ["base_model = 'cats.pt': the file is not in MODELS_DIR ("]),
        (["--data", "nowhere", "model=cats.pt"], ["/nowhere' does not exist", "'cats.pt': the file is not in"]),
        (["--id", "7"], ["id = '7': must be a UUID"]),
        (["--priority", "99999999999"], ["priority = 99999999999: must be a whole number from"]),
        (["--data", "nowhere"], ["/nowhere' does not exist or cannot be read on this host"]),
        (["--data", "s3://cats/data.yaml"], ["s3:// datasets are not supported"]),
    ],
    ids=" ".join,
)
def test_invalid_run_is_not_inserted(service, arguments, says):
    data = [] if "--data" in arguments else ["--data", str(service.home)]

    refused = service.run("enqueue", *data, *arguments, check=False)

    assert (refused.returncode, refused.stdout) == (2, "")
    lines = refused.stderr.splitlines()
    assert len(lines) == len(says)
    assert all(line.startswith("error: ") and part in line for line, part in zip(lines, says, strict=True))
    assert service.json("status")["runs"] == []


def test_settings_in_ultralytics_syntax_are_accepted(service):
    settings = ["epochs=50", "imgsz=640", "batch=8", "task=segment", "cos_lr=True", "freeze=[1, 2]", "time=None"]
    run_id = service.run("enqueue", "data=.", "model=yolo11n.pt", "name=first", *settings).stdout.strip()

    row = service.row(run_id)
    assert (row["data_yaml"], row["base_model"], row["run_name"]) == (str(service.home), "yolo11n.pt", "first")
    assert row["configuration"] == {
        "epochs": 50,
        "imgsz": 640,
        "batch": 8,
        "task": "segment",
        "cos_lr": "True",
        "freeze": [1, 2],
        "time": None,
    }


def test_blank_group_and_tag_count_as_not_set(service):
    options = ["--group", "", "--tag", "", "--tag", "night"]
    run_id = service.run("enqueue", "--data", str(service.home), *options).stdout.strip()

    row = service.json("status", run_id)
    assert (row["group"], row["tags"]) == (None, ["night"])


def test_unknown_setting_and_missing_worker_are_warnings(service):
    done = service.run("enqueue", "--data", str(service.home), "lerning_rate=0.1")

    assert done.stderr.splitlines() == [
        "warning: unknown setting lerning_rate was ignored; did you mean lr0?",
        "warning: no worker is running: the run stays queued until you start the service on a host.",
    ]
    queue = SqliteQueue(service.home / "queue.db")
    queue.report(Worker(id="w"), None)
    assert service.run("enqueue", "--data", str(service.home)).stderr == ""
    queue.report(Worker(id="w"), "the disk is full")
    warning = service.run("enqueue", "--data", str(service.home)).stderr
    assert warning == "warning: no worker claims runs now. Worker w: the disk is full\n"


def test_run_is_inserted_if_workers_cannot_be_read(service):
    queue = SqliteQueue(service.home / "queue.db")
    with closing(sqlite3.connect(service.home / "queue.db")) as database:
        database.execute("drop table trainer_workers")

    printed = service.run("enqueue", "--data", str(service.home), "epochs=1")

    assert [run.id for run in queue.list().runs] == [printed.stdout.strip()]
    assert printed.stderr == ""


def test_schema_is_printed_as_json_and_markdown(service):
    assert json.loads(service.run("schema").stdout)["properties"]["epochs"]["minimum"] == 1
    page = Path(__file__).parents[2] / "docs" / "run-configuration.md"
    assert service.run("schema", "--markdown").stdout == page.read_text()


def test_requeue_queues_ended_run_and_refuses_running_run(service):
    run_id = service.run("enqueue", "--data", str(service.home)).stdout.strip()
    assert service.json("cancel", run_id)["status"] == "canceled"

    assert service.run("requeue", run_id).stdout == f"{run_id} is queued\n"

    row = service.json("requeue", run_id)
    assert (row["status"], row["cancel_requested"], row["error_message"], row["canceled_at"]) == (
        "queued",
        False,
        None,
        None,
    )
    assert SqliteQueue(service.home / "queue.db").claim(Worker(id="w"), "11111111-1111-4111-8111-111111111111", 60)
    refused = service.run("requeue", run_id, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"error: {run_id} is running: cancel it or wait until it has ended, then requeue it.\n"
    assert service.row(run_id)["status"] == "running"


@pytest.fixture
def local(tmp_path):
    return Settings(backend="local", trainer_home=tmp_path)


@pytest.fixture
def remote(tmp_path):
    key = "sb_secret_of_the_test"
    return Settings(supabase_url="https://abc.supabase.co", supabase_service_role_key=key, trainer_home=tmp_path)


def test_missing_dataset_path_is_refused_only_for_local_queue(local, remote):
    request = RunRequest(data_yaml="cats/data.yaml")
    check_request(remote, request)
    with pytest.raises(BadRequest, match="does not exist or cannot be read on this host"):
        check_request(local, request)

    (local.datasets_folder / "cats").mkdir(parents=True)
    (local.datasets_folder / "cats" / "data.yaml").touch()
    check_request(local, request)


def test_missing_weights_file_is_refused_only_for_local_queue(local, remote):
    request = RunRequest(data_yaml="storage:cats", base_model="cats.pt")
    check_request(remote, request)
    with pytest.raises(BadRequest, match="the file is not in MODELS_DIR"):
        check_request(local, request)

    local.models_folder.mkdir(parents=True)
    with zipfile.ZipFile(local.models_folder / "cats.pt", "w") as weights:
        weights.writestr("cats/data.pkl", b"")
    check_request(local, request)


@pytest.mark.parametrize("data", ["storage:datasets/cats", "https://example.org/cats.zip"])
def test_existence_of_remote_dataset_is_not_checked(local, data):
    check_request(local, RunRequest(data_yaml=data))


def test_dataset_in_unmounted_dataset_root_is_accepted(local, tmp_path):
    mount = tmp_path / "mnt"
    check_request(
        local.model_copy(update={"extra_dataset_roots": (str(mount),)}), RunRequest(data_yaml=f"{mount}/cats")
    )


def test_exports_are_checked_against_installed_packages_only_for_local_queue(local, remote, monkeypatch):
    """The worker of a remote queue can have other packages than this host."""
    monkeypatch.setattr("trainer.wiring.datasets.available_exports", lambda: frozenset({"torchscript"}))
    request = RunRequest(data_yaml="storage:cats", configuration={"export": ["onnx"]})
    check_request(remote, request)
    with pytest.raises(BadRequest, match="formats of this worker: torchscript"):
        check_request(local, request)
    with pytest.raises(BadRequest, match="this export format does not exist"):
        check_request(remote, RunRequest(data_yaml="storage:cats", configuration={"export": ["gif"]}))


def test_invalid_configuration_is_refused_for_remote_queue(remote):
    with pytest.raises(BadRequest, match="epochs = 0"):
        check_request(remote, RunRequest(data_yaml="storage:cats", configuration={"epochs": 0}))
