"""Run folders and a bucket with checkpoints."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

from trainer.core.dataset import ObjectRef, PreparedDataset, Task
from trainer.core.job import Checkpoint, Job, RunRequest
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.resumption import Setup
from trainer.core.run_folder import RunFolder
from trainer.core.stop import StopSignal
from trainer.storage.local import LocalObjectStore
from trainer.worker.resume import CheckpointFinder
from trainer.worker.run_context import RunContext

BUCKET, KEY = "artifacts", "training_runs/x/1/checkpoints/epoch.pt"

PLAN = TrainPlan(
    sources=("d",), model=Architecture(stem="yolo11n"), task=None, epochs=100, batch=16, imgsz=640, device=None,
)  # fmt: skip

DATA = PreparedDataset(
    root=Path("/view"), data=Path("/view/data.yaml"), task=Task.DETECT, names=("cat",), images={"train": 9}, fingerprint="a" * 64,
)  # fmt: skip

NOW = Setup.of(PLAN, DATA)

OTHER = Setup.of(replace(PLAN, args={"lr0": 0.5}), DATA)


class Host:
    """The run folders of two attempts, and a bucket."""

    def __init__(self, home):
        self.first, self.second = home / "train_x", home / "train_x-2"
        self.store = LocalObjectStore(home / "bucket")
        self.job = Job(id="x", request=RunRequest(data_yaml="d"), attempt=3)
        self.events = []
        self.key = KEY  # the key of the uploaded checkpoint

    def keep(self, run_dir, epoch, setup=NOW, **facts):
        return self.write(run_dir, epoch, setup and {"epoch": epoch, "setup": setup.as_json()} | facts)

    def write(self, run_dir, epoch, facts):
        folder = RunFolder(run_dir).output.checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"epoch-{epoch:05d}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", f"state after {epoch}")
            if facts is not None:
                archive.writestr("archive/run/checkpoint.json", json.dumps(facts))
        return self.note(path, epoch)

    def note(self, path, epoch):
        facts = {"epoch": epoch, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        path.with_suffix(".json").write_text(json.dumps(facts))
        return path

    def upload(self, epoch, setup=NOW):
        """Upload a checkpoint that is in no run folder, and set it as the checkpoint of the row."""
        path = self.keep(self.first.parent / "elsewhere", epoch, setup)
        self.store.upload(path, ObjectRef(bucket=BUCKET, key=self.key), StopSignal())
        facts = json.loads(path.with_suffix(".json").read_text())
        self.job = replace(self.job, checkpoint=Checkpoint(**facts, key=self.key))

    def found(self, setup=NOW):
        target = self.first.parent / "train_x-3"
        attempts = [RunFolder(self.first), RunFolder(self.second)]
        return CheckpointFinder(self.run(RunFolder(target)), attempts, self.store, BUCKET).best_for(setup)

    def run(self, folder):
        """Return the context of the third attempt. Its events are added to `events`."""

        class Events:
            record = self.events.append

        return RunContext(job=self.job, folder=folder, stop=StopSignal(), events=Events, heartbeat=None)

    @property
    def codes(self):
        return [event.code for event in self.events]
