"""The recovery of a run publishes only files of this run, within limits of time and size."""

import os
import time

import pytest

from tests.unit.worker.harness import BUCKET
from tests.unit.worker.recovery_harness import TRAINED, Watched, killed, recover
from trainer.worker import artifact_upload

# ── files that a training process can create ──


# files of the service in the run folder, which only a training process without a sandbox can replace
OF_SERVICE = ["run.log", "manifest.json", ".run.log.uploading"]


@pytest.mark.parametrize(
    "name", [*OF_SERVICE, "output/results.csv", "output/weights/last.pt", "output/weights", "output"]
)
def test_link_out_of_run_folder_is_not_followed(worker, tmp_path, name):
    run_id, run_dir = killed(worker)
    secret = tmp_path / "secret"
    secret.write_text("a key")
    for file in ("last.pt", "weights/last.pt", "results.csv"):
        (tmp_path / "secrets" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "secrets" / file).write_text("a key")
    path = run_dir.parent / name
    is_folder = path.is_dir()
    if path.exists():
        path.rename(tmp_path / "replaced")
    path.symlink_to(tmp_path / "secrets" if is_folder else secret)

    recover(worker)

    assert worker.row(run_id)["status"] == "queued"
    assert secret.read_text() == "a key"
    for artifact in worker.artifacts(run_id).values():
        assert b"a key" not in (worker.home / "storage" / BUCKET / artifact["path"]).read_bytes()


@pytest.mark.parametrize("name", [*OF_SERVICE, "output/results.csv"])
def test_pipe_in_run_folder_does_not_block(worker, name):
    run_id, run_dir = killed(worker)
    (run_dir.parent / name).unlink(missing_ok=True)
    os.mkfifo(run_dir.parent / name)

    recover(worker)

    assert "last.pt" in worker.artifacts(run_id)


@pytest.mark.parametrize("name", ["manifest.json", ".run.log.uploading"])
def test_folder_in_place_of_log_or_manifest_does_not_stop_publishing(worker, name):
    run_id, run_dir = killed(worker)
    (run_dir.parent / name / "deep").mkdir(parents=True)

    recover(worker)

    assert worker.artifacts(run_id).keys() == TRAINED


@pytest.mark.parametrize("name", ["output/results.csv", "run.log"])
def test_recovery_with_huge_file_ends_within_time_limit(worker, monkeypatch, name):
    """It can take hours to read a sparse file. Without a limit, the recovery would renew the lease all this time."""
    monkeypatch.setattr(artifact_upload, "LARGEST_LOG", 2**20)
    worker.drain_seconds = 0.5
    run_id, run_dir = killed(worker)
    os.truncate(run_dir.parent / name, 2**42)

    began = time.monotonic()
    recover(worker)

    assert time.monotonic() - began < 15
    assert worker.row(run_id)["status"] == "queued"


def test_only_end_of_large_log_is_published(worker, monkeypatch):
    monkeypatch.setattr(artifact_upload, "LARGEST_LOG", 1000)
    run_id, run_dir = killed(worker)
    (run_dir.parent / "run.log").write_text("epoch\n" * 10_000)

    recover(worker)

    log = worker.artifacts(run_id)["run.log"]
    content = (worker.home / "storage" / BUCKET / log["path"]).read_text()
    assert len(content) == log["bytes"] == 1000
    assert "uploading" in content.splitlines()[-1]


def test_weights_are_published_before_other_files_if_time_is_short(worker):
    worker.drain_seconds = 0.5
    run_id, run_dir = killed(worker)
    (run_dir / "labels").mkdir()
    for number in range(50):
        (run_dir / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.1 0.1\n")

    recover(worker, store=Watched(worker.store, lambda *_: time.sleep(0.1), "upload"))

    assert "last.pt" in worker.artifacts(run_id)
    assert len(worker.artifacts(run_id)) < 50
