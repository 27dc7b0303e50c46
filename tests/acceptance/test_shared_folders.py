"""Two services share DATASET_ROOT and RUNS_DIR: neither service removes files that the other service uses."""

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.service import running

SLOW = {"seconds_per_epoch": 0.5}


def wait_until(holds, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def looks_old(folder: Path) -> None:
    for path in [folder, *folder.iterdir()]:
        os.utime(path, (0, 0), follow_symlinks=False)


@pytest.mark.long
def test_service_removes_only_unused_files_of_another_service(tmp_path, data):
    shared = {"DATASET_ROOT": tmp_path / "shared" / "datasets", "RUNS_DIR": tmp_path / "shared" / "runs"}
    sweeping = {"KEEP_RUNS_DAYS": 1e-6, "SWEEP_SECONDS": 0.2}
    with ExitStack() as services:
        a = services.enter_context(running(tmp_path / "a", SLOW, **shared))
        b = services.enter_context(running(tmp_path / "b", SLOW, **shared, **sweeping))
        run_id = a.enqueue(data, epochs=8)
        a.wait_until(run_id, lambda row: ((row["results"] or {}).get("progress") or {}).get("epoch", 0) >= 1)
        view, run_dir = shared["DATASET_ROOT"] / "datasets" / f"run_{run_id}", shared["RUNS_DIR"] / f"train_{run_id}"
        looks_old(view)  # simulates a run that has trained for many days
        a.wait_until(run_id, lambda row: row["results"]["progress"]["epoch"] >= 5)
        assert (view / "view" / "data.yaml").exists()
        assert (run_dir / "run.log").exists()
        row = a.wait(run_id, "completed", "failed", "queued")
        assert (row["status"], row["attempt"]) == ("completed", 1)
        wait_until(lambda: not run_dir.exists())  # the run has ended, and KEEP_RUNS_DAYS of b has passed

        second = a.enqueue(data, epochs=100)
        a.wait_until(second, lambda row: ((row["results"] or {}).get("progress") or {}).get("epoch", 0) >= 1)
        a.process.kill()
        a.process.wait()
        wait_until(lambda: not view.with_name(f"run_{second}").exists())
        wait_until(lambda: not [*view.parent.iterdir()])

        assert b.stop() == 0
    assert "Traceback" not in b.log.read_text()
