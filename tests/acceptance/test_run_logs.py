"""The log of the service, the phase events and the log of a run contain what an on-call engineer needs."""

import itertools
import json
import re
import time
from contextlib import contextmanager

import pytest

from tests.acceptance.service import Service, running
from tests.integration.whole_supabase import WebApp, put_dataset, settings_for, storage_for
from trainer.demo import draw_dataset

PHASES = [
    *("preparing", "downloading", "checking", "starting", "loading", "scanning", "training", "finalizing", "uploading"),
    "ending",
]
STAMP = re.compile(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] ")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn"), images=10, size=32)


def lines_of(service, run_id):
    return [line for line in service.lines() if line.get("run_id") == run_id]


def test_each_phase_is_an_event_with_time_and_transferred_bytes(supabase, drawn, home):
    with (
        storage_for(supabase) as storage,
        WebApp(supabase) as app,
        running(home, {}, **settings_for(supabase)) as service,
    ):
        run_id = app.insert(put_dataset(storage, drawn.parent), epochs=2)
        deadline = time.monotonic() + 60
        while app.row(run_id)["status"] != "completed" and time.monotonic() < deadline:
            time.sleep(0.1)
        events = [event["data"] for event in app.events(run_id) if event["kind"] == "phase"]
        logged = [line for line in lines_of(service, run_id) if line["event"] == "phase"]

    assert [event["phase"] for event in events] == PHASES == [line["phase"] for line in logged]
    assert events[0]["seconds"] is None
    assert all(event["seconds"] >= 0 for event in events[1:])
    after = {before["phase"]: event for before, event in itertools.pairwise(events)}
    # 10 images, 10 label files and data.yaml
    assert after["downloading"]["files"] >= 20
    assert after["downloading"]["bytes"] > 10 * 500
    assert after["downloading"]["rate"] > 0
    assert after["uploading"]["files"] >= 5
    assert after["uploading"]["rate"] > 0
    assert after["training"]["files"] is None
    assert logged[2]["after_seconds"] == events[2]["seconds"]
    assert logged[2]["bytes"] == events[2]["bytes"]


def test_every_log_line_of_a_run_has_id_attempt_and_phase(supabase, drawn, home):
    with storage_for(supabase) as storage, WebApp(supabase) as app:
        settings = settings_for(supabase) | {"CHECKPOINT_INTERVAL": "0.2"}
        with running(home, {"seconds_per_epoch": 0.5}, **settings) as service:
            run_id = app.insert(put_dataset(storage, drawn.parent), epochs=8)
            deadline = time.monotonic() + 60
            while app.row(run_id)["progress_epoch"] < 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            # from now on, heartbeats and checkpoint uploads fail
            supabase.gateway.faults = lambda _, path: (503, {}, b"") if "beat_training_run" in path else None
            storage.fault("status", on="POST /object/training-artifacts", status=403, times=3, body=b"{}")
            while "queue unavailable" not in service.log.read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            supabase.gateway.faults = None
            # the service writes the row first, then logs `run ended`
            while "run ended" not in service.log.read_text() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert app.row(run_id)["status"] == "completed"

    about = [line for line in service.lines() if line["event"] not in {"service starts", "queue available again"}]
    texts = {line["event"] for line in about}
    assert {
        "run claimed",
        "run started",
        "epoch finished",
        "run ended",
        "queue unavailable, training continues",
    } <= texts
    assert "checkpoint upload failed, retrying" in texts
    assert {(line.get("run_id"), line.get("attempt")) for line in about} == {(run_id, 1)}
    without_phase = [line["event"] for line in about if not line.get("phase")]
    assert set(without_phase) <= {"run claimed", "run started"}, (
        "each line after the start of the first phase must have a phase"
    )


def test_training_output_is_timestamped(home, drawn):
    with running(home, {"lines": 3}) as service:
        run_id = service.enqueue(drawn, epochs=1)
        service.wait(run_id, "completed")
        log = service.run("logs", run_id).stdout.splitlines()

    assert sum("line 2: box_loss" in line for line in log) == 1
    assert all(STAMP.match(line) for line in log)


def test_training_output_is_unchanged_without_timestamps(home, drawn):
    with running(home, {"lines": 1}, TIMESTAMP_STREAMS=0) as service:
        run_id = service.enqueue(drawn, epochs=1)
        service.wait(run_id, "completed")
        log = service.run("logs", run_id).stdout.splitlines()

    assert "epoch 1/1 line 0: box_loss 1.000" in log
    assert [line for line in log if "phase: " in line and STAMP.match(line)], "service lines must have a timestamp"


def test_progress_bar_becomes_at_most_one_line_per_second(home, drawn):
    bar = "".join(f"\r\033[K {percent:3d}% \033[34m{'━' * 5}\033[0m" for percent in range(0, 100, 2)) + "\r 100% done\n"
    with running(home, {"at_epoch": 1, "print": bar}, TIMESTAMP_STREAMS=0) as service:
        run_id = service.enqueue(drawn, epochs=1)
        service.wait(run_id, "completed")
        log = service.run("logs", run_id).stdout

    drawings = [line for line in log.splitlines() if "%" in line]
    assert len(drawings) <= 3
    assert drawings[-1] == " 100% done"
    assert "\r" not in log
    assert "\033" not in log


def test_run_log_is_an_artifact(home, drawn):
    with running(home, {}) as service:
        run_id = service.enqueue(drawn, epochs=1)
        row = service.wait(run_id, "completed")
        local = service.run("logs", run_id).stdout

    (artifact,) = [artifact for artifact in row["results"]["artifacts"] if artifact["name"] == "run.log"]
    published = (home / "storage" / "training-artifacts" / artifact["path"]).read_text()
    assert "epoch: epoch=1" in published
    assert local.startswith(published)


def test_journald_line_has_priority_and_run_id(home, drawn):
    service = Service(home, {}, LOG_FORMAT="journal")
    service.start()
    try:
        run_id = service.insert(drawn / "nothing", epochs=1)
        service.wait(run_id, "failed")
    finally:
        service.stop()

    (ended,) = [line for line in service.log.read_text().splitlines() if "run ended" in line]
    assert ended.startswith("<3>run ended")
    assert f"run_id={run_id} attempt=1 phase=" in ended


def test_log_format_is_journal_if_journald_reads_stderr(home):
    home.mkdir()
    (home / "service.log").touch()
    about = (home / "service.log").stat()
    service = Service(home, {}, LOG_FORMAT="auto", JOURNAL_STREAM=f"{about.st_dev}:{about.st_ino}")
    with service_of(service):
        wait_for_a_line(service)
    lines = service.log.read_text().splitlines()
    assert lines
    assert all(line.startswith("<") for line in lines)

    another = Service(home, {}, LOG_FORMAT="auto", JOURNAL_STREAM="1:2")
    another.log = home / "another.log"
    with service_of(another):
        wait_for_a_line(another)
    assert "service starts" in another.log.read_text()
    assert not another.log.read_text().startswith("<")


@contextmanager
def service_of(service):
    service.start()
    try:
        yield
    finally:
        service.stop()


def wait_for_a_line(service):
    deadline = time.monotonic() + 15
    while "service starts" not in service.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_json_log_has_one_object_per_line(home):
    with running(home, {}) as service:
        deadline = time.monotonic() + 10
        while not service.lines() and time.monotonic() < deadline:
            time.sleep(0.05)

    assert all(isinstance(json.loads(line), dict) for line in service.log.read_text().splitlines())
