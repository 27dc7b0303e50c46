"""A run that is edited and requeued is trained with its new settings.

The service and the trainings are real. The tests read the files that Ultralytics wrote.
"""

import csv
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.acceptance.service import running
from trainer.core.run_folder import OutputFolder
from trainer.jobs.sqlite import SqliteQueue

pytestmark = pytest.mark.training

FIRST = {
    "epochs": 200, "batch": 4, "imgsz": 32, "optimizer": "SGD", "lr0": 0.01, "lrf": 0.01, "warmup_epochs": 0, "plots": False,
    "compute": "cpu",
}  # fmt: skip


@pytest.fixture
def queue(tmp_path):
    """A running service and its queue."""
    with running(tmp_path, DRAIN_SECONDS=60) as service:
        yield Table(service)


class Table:
    """Edit runs in the queue of a service, and read their events and files."""

    def __init__(self, service):
        self.service = service
        self.queue = SqliteQueue(service.home / "queue.db")

    def edit(self, run_id, configuration, **columns):
        """Edit the row in the database and requeue it, as the web app does."""
        columns |= {"configuration": json.dumps(configuration), "status": "queued"}
        with closing(sqlite3.connect(self.service.home / "queue.db", timeout=30)) as db, db:
            db.execute(
                f"update training_runs set {', '.join(f'{name} = ?' for name in columns)} where id = ?",
                [*columns.values(), run_id],
            )

    def train_until(self, run_id, epoch, attempt=1):
        self.service.wait_until(run_id, lambda _: epoch in self.epochs(run_id, attempt), seconds=90)

    def fail(self, run_id):
        """Set the status to failed, as the queue does after too many failures. Wait for the end of the training."""
        with closing(sqlite3.connect(self.service.home / "queue.db", timeout=30)) as db, db:
            db.execute(
                "update training_runs set status = 'failed', error_message = 'Use a smaller batch.' where id = ?",
                [run_id],
            )
        self.service.wait_until(run_id, lambda _: not self.service.children(), seconds=30)

    def epochs(self, run_id, attempt):
        return [e.data["epoch"] for e in self.queue.events(run_id) if e.kind == "epoch" and e.attempt == attempt]

    def saved(self, run_id, attempt):
        """Return the epoch of the newest checkpoint, which can be later than the last reported epoch."""
        checkpoints = OutputFolder(self.folder(run_id, attempt) / "output").checkpoints
        return max(int(path.stem.removeprefix("epoch-")) for path in checkpoints.glob("epoch-*.json"))

    def warnings(self, run_id, code):
        return [e.data["message"] for e in self.queue.events(run_id) if e.kind == "warning" and e.data["code"] == code]

    def folder(self, run_id, attempt):
        return self.service.home / "runs" / (f"train_{run_id}" + (f"-{attempt}" if attempt > 1 else ""))

    def completed(self, run_id):
        row = self.service.wait(run_id, "completed", "failed", "canceled", seconds=120)
        assert row["status"] == "completed", row["error_message"]
        return row

    def trained_with(self, row):
        return yaml.safe_load((Path(row["results"]["run_dir"]) / "args.yaml").read_text())

    def table(self, row):
        text = (Path(row["results"]["run_dir"]) / "results.csv").read_text()
        return [
            {name.strip(): float(value) for name, value in line.items()} for line in csv.DictReader(io.StringIO(text))
        ]


@pytest.mark.long
def test_failed_run_resumes_with_edited_batch_and_image_size_and_then_with_fewer_epochs(queue, data):
    """The trained epochs are kept, and the remaining epochs use the new settings."""
    run_id = queue.service.enqueue(data, **FIRST)
    queue.train_until(run_id, 3)
    queue.fail(run_id)
    done = queue.saved(run_id, 1)
    queue.edit(run_id, FIRST | {"batch": 2, "imgsz": 64})
    queue.train_until(run_id, done + 2, attempt=2)
    assert yaml.safe_load((queue.folder(run_id, 2) / "output" / "args.yaml").read_text())["batch"] == 2

    queue.fail(run_id)
    epochs = queue.saved(run_id, 2) + 3
    queue.edit(run_id, FIRST | {"batch": 2, "imgsz": 64, "epochs": epochs})
    row = queue.completed(run_id)

    trained = queue.trained_with(row)
    plan = row["results"]["plan"]
    assert (trained["batch"], trained["imgsz"], trained["epochs"]) == (2, 64, epochs)
    assert (plan["batch"], plan["imgsz"], plan["epochs"]) == (2, 64, epochs)
    assert "started_from" not in plan
    assert row["attempt"] == 3
    rows = queue.table(row)
    assert [line["epoch"] for line in rows] == list(range(1, epochs + 1))
    assert rows[-1]["lr/pg0"] < 0.5 * rows[0]["lr/pg0"], "the schedule must use the edited number of epochs"
    first, second = queue.warnings(run_id, "resumed_with_changes")
    assert "batch 4 → 2, imgsz 32 → 64" in first
    assert f"epochs 200 → {epochs}" in second
    assert queue.warnings(run_id, "started_over") == []


@pytest.mark.long
def test_run_with_edited_optimizer_starts_over_from_best_weights_and_later_resumes(queue, data):
    run_id = queue.service.enqueue(data, **FIRST)
    queue.train_until(run_id, 3)
    queue.fail(run_id)
    edited = FIRST | {"optimizer": "AdamW", "lr0": 0.001, "epochs": 150, "batch": 8}
    queue.edit(run_id, edited)
    queue.train_until(run_id, 2, attempt=2)
    assert queue.epochs(run_id, 2)[0] == 1

    # after the interruption, the run resumes from the checkpoint of the new training, not of the old training
    queue.service.stop(seconds=60)
    queue.service.start()
    queue.train_until(run_id, max(queue.epochs(run_id, 2)) + 1, attempt=3)
    assert min(queue.epochs(run_id, 3)) == max(queue.epochs(run_id, 2)) + 1
    queue.queue.request_finish(run_id)
    row = queue.completed(run_id)

    trained, plan = queue.trained_with(row), row["results"]["plan"]
    assert (trained["optimizer"], trained["lr0"], trained["epochs"], trained["batch"]) == ("AdamW", 0.001, 150, 8)
    assert (plan["args"]["optimizer"], plan["args"]["lr0"], plan["epochs"], plan["batch"]) == ("AdamW", 0.001, 150, 8)
    assert "the best weights of an earlier training of this run" in plan["started_from"]
    [over] = queue.warnings(run_id, "started_over")
    assert "optimizer SGD → AdamW" in over
    assert "lr0 0.01 → 0.001" in over
    assert [line["epoch"] for line in queue.table(row)] == [float(n) for n in range(1, len(queue.table(row)) + 1)]
    log = (queue.folder(run_id, 2) / "run.log").read_text()
    assert "checkpoints/start.pt" in log
    assert "Transferred 499/499 items" in log


@pytest.mark.long
def test_run_with_edited_base_model_is_trained_from_scratch(queue, data):
    run_id = queue.service.enqueue(data, **FIRST)
    queue.train_until(run_id, 2)
    queue.fail(run_id)
    queue.edit(run_id, FIRST | {"epochs": 2}, base_model="yolov8n.yaml")
    row = queue.completed(run_id)

    assert queue.trained_with(row)["model"].endswith("yolov8n.yaml")
    assert row["results"]["plan"]["model"]["stem"] == "yolov8n"
    assert "started_from" not in row["results"]["plan"]
    [over] = queue.warnings(run_id, "started_over")
    assert "base_model yolo11n.yaml → yolov8n.yaml" in over
    assert [line["epoch"] for line in queue.table(row)] == [1, 2]
    assert queue.epochs(run_id, 2) == [1, 2]
