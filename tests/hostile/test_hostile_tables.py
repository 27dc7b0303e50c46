"""Files of a training that the service reads in other ways: results.csv, and a checkpoint during its upload."""

from __future__ import annotations

import os

import pytest

from tests.unit.worker.fakes import Replaced
from tests.unit.worker.harness import WorkerFixture, interrupted_upload

TABLES = {
    "control characters": "epoch,time,metrics/\x1b[2J\u202e\n1,2,0.1\n",
    "a field beyond the limit of the csv module": "epoch,time,metrics/m\n1,2," + "1" * 200_000 + "\n",
    "an open quote": 'epoch,time,metrics/m\n1,2,"' + "1\n" * 200_000,
    "seconds without end": "epoch,time,metrics/m\n1,inf,0.1\n",
    "many seconds": "epoch,time,metrics/m\n1,1e300,0.1\n",
    "many metrics": "epoch,time," + ",".join(f"metrics/{n}" for n in range(300_000)) + "\n1,2" + ",1" * 300_000 + "\n",
    "a long name": f"epoch,time,metrics/{'m' * 1000}\n1,2,0.1\n",
    "many rows": "epoch,time,metrics/" + "m" * 30_000 + "\n" + "1,2,0.1\n" * 500_000,
}


@pytest.mark.parametrize("table", TABLES)
def test_table_of_training_adds_no_event_beyond_limits(tmp_path, table):
    """After an interrupted upload, the service reads the epochs that it could not report from results.csv."""
    worker = WorkerFixture(tmp_path)
    run_id, run_dir = interrupted_upload(worker)
    worker.forget_epochs(run_id, after=0)
    worker.update_row(run_id, last_reported_epoch=0, last_reported_attempt=1)
    (run_dir / "results.csv").write_text(TABLES[table], "utf-8")

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert "epoch" not in worker.kinds(run_id)


@pytest.mark.parametrize("size", [2**40, 1], ids=["larger", "smaller"])
def test_checkpoint_that_changes_its_size_after_its_checksum_was_verified_is_not_published(tmp_path, size):
    """A training process is alive during the upload, and can resize its file right before the file is read."""
    worker = WorkerFixture(tmp_path)
    worker.shut_down_in(epoch=2)
    sent = []

    def upload(path, ref, stop, on_bytes):
        if "checkpoints" in ref.key:
            os.truncate(path, size)
        return worker.store.upload(path, ref, stop, on_bytes=lambda n: (sent.append(n), on_bytes(n)))

    run_id = worker.enqueue()
    worker.work(store=Replaced(worker.store, upload=upload))

    assert sent
    assert sum(sent) <= 2**21
    assert worker.row(run_id)["checkpoint"] is None
