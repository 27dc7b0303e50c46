"""The real command with real signals and a local queue."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest

from tests.acceptance.service import COMMAND, Service, running
from trainer.demo import draw_dataset
from trainer.jobs.sqlite import SqliteQueue


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn"), images=10, size=64)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


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
    with running(home, {"seconds_per_epoch": 0.5, "deaf": True, "immortal": True}, CANCEL_GRACE=1) as service:
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


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["SIGTERM", "Ctrl-C", "SIGHUP"],
)  # fmt: skip
def test_signal_requeues_run_and_exits_0(home, data, number):
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=8)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)

        assert service.stop(number) == 0

        row = service.row(run_id)
        assert (row["status"], row["failures"]) == ("queued", 0)
        assert row["checkpoint"]["epoch"] >= 1

        service.behave()
        service.start()
        row = service.wait(run_id, "completed")
        assert row["attempt"] == 2
        events = [line for line in service.lines() if line.get("code") == "resumed"]
        assert events


@pytest.mark.long
def test_second_signal_exits_at_once_and_run_resumes_later(home, data):
    with running(home, {"seconds_per_epoch": 0.5, "deaf": True, "immortal": True}, CANCEL_GRACE=20) as service:
        run_id = service.enqueue(data, epochs=8)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)
        children = service.children()
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)

        assert service.stop(signal.SIGTERM, seconds=5) == 128 + signal.SIGTERM

        assert gone(children)
        service.behave()
        service.start()
        assert service.wait(run_id, "completed")["attempt"] == 2


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_second_sighup_does_not_end_the_drain(home, data, first):
    """A closing terminal sends several SIGHUPs, and systemd can send one right after SIGTERM."""
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=8)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)
        service.process.send_signal(first)
        for _ in range(3):
            time.sleep(0.02)
            service.process.send_signal(signal.SIGHUP)

        assert service.process.wait(30) == 0
        row = service.row(run_id)
        assert (row["status"], row["failures"]) == ("queued", 0)
        assert row["checkpoint"]["epoch"] >= 1


def test_sighup_stays_ignored_under_nohup(home):
    service = Service(home, {})
    service.command = ["nohup", *service.command]
    service.start()
    try:
        deadline = time.monotonic() + 10
        while not (service.lines() and (home / "queue.db").exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        service.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert service.process.poll() is None
        assert service.stop(signal.SIGTERM) == 0
    finally:
        service.process.kill()


def gone(processes, seconds=5):
    _, alive = psutil.wait_procs(processes, seconds)
    return not alive


@pytest.mark.long
def test_killed_training_is_retried_and_service_continues(home, data):
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=6)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 2)
        for child in service.children():
            with suppress(psutil.NoSuchProcess):  # killing a guardian ends the others, too
                child.kill()

        row = service.wait_until(run_id, lambda row: row["status"] == "queued" or row["attempt"] > 1)

        assert "kill" in json.dumps(row["error_message"] or "") or row["attempt"] > 1
        assert service.process.poll() is None
        assert service.wait(run_id, "completed")["attempt"] == 2


def test_killed_service_leaves_no_process_and_its_run_resumes(home, data):
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=6)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 2)
        children = service.children()
        service.stop(signal.SIGKILL)

        assert gone(children)

        service.behave()
        service.start()
        row = service.wait(run_id, "completed")
        assert row["attempt"] == 2
        assert row["results"]["metrics"]["epoch"] == 6


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
def test_two_slots_train_two_runs_and_third_run_waits(home, data):
    with running(home, {"seconds_per_epoch": 1.5}, SLOTS=2) as service:
        runs = [service.enqueue(data, epochs=4) for _ in range(3)]
        service.wait_until(runs[1], lambda row: row["progress_epoch"] >= 1)
        queue = SqliteQueue(home / "queue.db")

        assert [queue.get(run).status for run in runs] == ["running", "running", "queued"]
        for run in runs:
            service.wait(run, "completed")


def broken_yaml(folder):
    path = folder / "data.yaml"
    path.write_text("train: [unclosed\nnames: {")
    return path


def without_labels(folder):
    path = draw_dataset(folder, images=5, size=64)
    for label in folder.glob("labels/*/*.txt"):
        label.unlink()
    return path


def without_val(folder):
    path = draw_dataset(folder, images=5, size=64)
    path.write_text(path.read_text().replace("val: images/val\n", ""))
    shutil.rmtree(folder / "images" / "val")
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nothing.yaml", "nothing.yaml"),
        (lambda folder: folder, "no"),
        (broken_yaml, "YAML"),
        (without_labels, "label"),
        (without_val, "val"),
    ],
    ids=["no dataset", "an empty directory", "unreadable YAML", "no labels", "no val split"],
)
def test_bad_dataset_fails_run_with_a_sentence(home, tmp_path, make, says):
    folder = tmp_path / "bad"
    folder.mkdir()
    with running(home, {}) as service:
        row = service.wait(service.insert(make(folder), epochs=1), "failed")

    assert says.lower() in row["error_message"].lower()
    assert "Traceback" not in row["error_message"]
    assert row["attempt"] == 1


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ({"epochs": 0}, "epochs"),
        ({"baseModel": "EfficientDet-D0"}, "EfficientDet-D0"),
        ({"imgSize": "huge"}, "imgSize"),
    ],
)
def test_bad_configuration_fails_run_and_names_the_field(home, data, configuration, says):
    with running(home, {}) as service:
        assert says in service.wait(service.insert(data, **configuration), "failed")["error_message"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "no-such-run"], "no such run"),
        (["cancel", "no-such-run"], "no such run"),
        (["logs", "no-such-run"], "no such run"),
        (["enqueue", "--data", "x", "--config", "{not json"], "not JSON"),
        (["enqueue", "--data", "x", "--config", "[1]", "--epochs", "3"], "--epochs"),
        *(
            (
                ["enqueue", "--data", "x", "--config", f'{{"lr0": {number}}}'],
                f"{number[:20]} is not a number that can be stored",
            )
            for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e5000", "9" * 5000)
        ),
        (["enqueue", "--data", "x", "--config", "[" * 33 + "]" * 33], "--config: nested deeper than 32 levels"),
        (["enqueue", "--data", "x", "--config", '{"a":' * 1500 + "1" + "}" * 1500], "nested deeper than 32 levels"),
        (["enqueue", "--data", "x", "--config", "[" * 50_000], "nested deeper than 32 levels"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_wrong_command_is_one_line_error(home, arguments, says):
    refused = Service(home, {}).run(*arguments, check=False)

    assert refused.returncode == 1
    assert says in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stdout == ""


@pytest.mark.parametrize(
    "config",
    ["{}", "null", '{"seed": 1, "lrf": 1e-5}', '{"note": 100000000000000000000000}', '{"note": %s}' % ("[" * 31 + "]" * 31)],
)  # fmt: skip
def test_config_within_limits_is_queued(home, data, config):
    service = Service(home, {})

    run_id = service.run("enqueue", "--data", str(data), "--config", config).stdout.strip()

    assert service.row(run_id)["configuration"] == json.loads(config)


def test_wrong_settings_are_all_reported_with_exit_code_2(home):
    service = Service(home, {}, POLL_INTERVAL="soon", SLOTS="-1")

    refused = service.run(check=False)

    assert refused.returncode == 2
    assert "POLL_INTERVAL" in refused.stderr
    assert "SLOTS" in refused.stderr


def test_idle_service_needs_little_memory_and_has_no_torch(home):
    with running(home, {}) as service:
        time.sleep(2)
        process = psutil.Process(service.process.pid)

        assert process.memory_info().rss < 80 * 2**20
        assert not [part for part in process.memory_maps() if "torch" in part.path]


def test_help_lists_every_command():
    text = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout

    for command in ("enqueue", "status", "watch", "cancel", "finish", "requeue", "logs"):
        assert command in text


@pytest.mark.training
def test_real_training_from_queue_to_artifacts(home, data):
    with running(home) as service:
        run_id = service.enqueue(data, epochs=1, imgsz=64, batch=4, workers=0, compute="cpu")
        row = service.wait(run_id, "completed", "failed", seconds=240)

    assert row["status"] == "completed", row["error_message"]
    published = {artifact["name"] for artifact in row["results"]["artifacts"]}
    assert {"best.pt", "last.pt", "results.csv", "results.png", "args.yaml", "labels.jpg", "run.log"} <= published
    assert isinstance(row["results"]["mAP"], float)
    assert row["results"]["metrics"]["epoch"] == 1
