"""A finished model is published only if its files match the report of the training."""

import hashlib
import os
import shutil

import pytest

from tests.unit.worker.harness import assert_model_is_published, failing_store, interrupted_upload, output_of
from trainer.core.errors import Unavailable
from trainer.core.events import Finished, WeightsFile
from trainer.core.run_folder import RunFolder
from trainer.worker import finished_marker

DAMAGES = {
    "a missing file": lambda path: path.unlink(),
    "a truncated file": lambda path: path.write_bytes(path.read_bytes()[:3]),
    "an empty file": lambda path: path.write_bytes(b""),
    "a file of zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a file with other content": lambda path: path.write_bytes(b"the rest"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link out of the folder": lambda path: (
        path.rename(path.parents[2] / "x.pt"),
        path.symlink_to(path.parents[2] / "x.pt"),
    ),
}


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_is_not_published_and_training_resumes(worker, name, damage):
    run_id, run_dir = interrupted_upload(worker)
    DAMAGES[damage](run_dir / "weights" / name)

    worker.work_again()

    row = assert_model_is_published(worker, run_id)
    assert row["attempt"] == 2
    assert worker.trainer.orders[1].resume.name == "1-epoch-00003.pt"
    [message] = worker.warnings(run_id, "model_damaged")
    assert name in message


def test_pipe_in_place_of_model_is_reported_without_opening_it(tmp_path):
    """The training process chooses size and type of the file. Opening a pipe would block."""
    folder = RunFolder(tmp_path)
    folder.output.weights.mkdir(parents=True)
    os.mkfifo(folder.output.best)
    pipe = WeightsFile(sha256=hashlib.sha256().hexdigest(), bytes=0)

    damage = finished_marker.find_damage(folder, Finished(best=pipe, last=pipe, report={}), lambda: None)

    assert damage == "best.pt cannot be read: not a regular file"


def test_damaged_model_without_checkpoint_is_trained_again(worker):
    run_id, run_dir = interrupted_upload(worker)
    (run_dir / "weights" / "best.pt").unlink()
    shutil.rmtree(run_dir / "checkpoints")

    worker.work_again()

    assert_model_is_published(worker, run_id)
    assert worker.trainer.orders[1].resume is None


def test_model_damaged_during_retries_is_not_published(worker):
    """The run is requeued, and the next attempt resumes from the checkpoint."""
    run_id = worker.enqueue()
    run_dir = output_of(worker, run_id)
    store = failing_store(worker, "upload", [Unavailable("down")] * 5)
    record = worker.reporter.event

    def damage(job, event):
        record(job, event)
        if getattr(event, "code", "") == "upload_waits":
            (run_dir / "weights" / "best.pt").write_bytes(b"")

    worker.reporter.event = damage
    worker.work(store=store)
    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "best.pt" in row["error_message"]
    worker.update_row(run_id, not_before=None)

    worker.work_again()

    assert_model_is_published(worker, run_id)
    assert worker.warnings(run_id, "model_damaged")
    assert worker.trainer.orders[1].resume.name == "1-epoch-00003.pt"
