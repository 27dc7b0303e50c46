"""A complete worker with an SQLite queue and fake training, datasets and weights."""

import contextlib
import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from trainer.core.dataset import PreparedDataset, Task
from trainer.core.events import CheckpointSaved, EpochFinished, Finished, WeightsFile
from trainer.core.job import RunRequest
from trainer.core.ports import Worker
from trainer.core.stop import StopSignal
from trainer.jobs.sqlite import SqliteQueue
from trainer.request.parse import plan_of
from trainer.storage.local import LocalObjectStore
from trainer.worker.execution import Execution, RunHost
from trainer.worker.health import Health
from trainer.worker.lease import LeaseTimes
from trainer.worker.liveness import Liveness
from trainer.worker.orphaned_journals import orphaned_journals
from trainer.worker.outcome_delivery import OrphanDelivery
from trainer.worker.recovery import Recovery
from trainer.worker.run_folders import RunFolders
from trainer.worker.run_services import RunServices, RunTimes
from trainer.worker.slots import CPU, Slots
from trainer.worker.uploaded_checkpoints import UploadedCheckpoints

BUCKET = "training-artifacts"


class PretendedDatasets:
    def __init__(self):
        self.error = None
        self.prepared = []

    def prepare(self, order, view, stop, on_event):
        stop.raise_if_set()
        if self.error:
            raise self.error
        view.mkdir(parents=True)
        self.prepared.append(order)
        return PreparedDataset(
            root=view, data=view / "data.yaml", task=Task.DETECT, names=("a",), images={"train": 4, "val": 2},
            fingerprint="f" * 64, summary={"images": {"train": 4}},
        )  # fmt: skip

    def prefetch(self, order, stop):
        pass

    def discard(self, view, *, keep=False):
        if not keep:
            shutil.rmtree(view, ignore_errors=True)


class PretendedWeights:
    def resolve(self, model, task, stop):
        return Path("yolo11n.yaml")


class PretendedTrainer:
    """Trains `epochs` at once. `during` is called in each epoch and may raise, wait or set a stop."""

    def __init__(self, epochs: int = 3):
        self.epochs = epochs
        self.batch = None  # with which it trained in the end
        self.during: Callable[[int], None] = lambda epoch: None
        self.orders = []

    def train(self, order, stop, on_event, on_line):
        self.orders.append(order)
        weights = order.run_dir / "weights"
        weights.mkdir(parents=True, exist_ok=True)
        on_line("training begins")
        for epoch in range(1, self.epochs + 1):
            self.during(epoch)
            stop.raise_if_set()
            (weights / "last.pt").write_bytes(b"last of %d" % epoch)
            on_event(EpochFinished(epoch=epoch, total_epochs=self.epochs, metrics={"m": epoch / 10}, seconds=0.1))
            on_event(save_checkpoint(order.run_dir, epoch))
        (weights / "best.pt").write_bytes(b"the best")
        (order.run_dir / "results.csv").write_text("epoch\n1\n")
        return Finished(
            best=described(weights / "best.pt"),
            last=described(weights / "last.pt"),
            report={
                "mAP": 0.5,
                "metrics": {"metrics/mAP50(B)": 0.7},
                "epochs_completed": self.epochs,
                "batch": self.batch,
            },
        )

    def close(self):
        pass


def described(path: Path) -> WeightsFile:
    content = path.read_bytes()
    return WeightsFile(path=str(path), sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def save_checkpoint(run_dir: Path, epoch: int) -> CheckpointSaved:
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    content = b"state after %d" % epoch
    path = folder / f"epoch-{epoch:05d}.pt"
    path.write_bytes(content)
    facts = {"epoch": epoch, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return CheckpointSaved(path=str(path), **facts)


class Listener:
    def __init__(self):
        self.heard = []
        self.ends = []

    def started(self, job):
        self.heard.append("started")

    def event(self, job, event):
        self.heard.append(event)

    def ended(self, job, end):
        self.heard.append(end.outcome)
        self.ends.append(end)


@dataclass
class Room:
    """A worker for tests: `enqueue` a run, `work` until it has ended, then check `row` and `store`."""

    home: Path
    lease_seconds: float = 60.0
    beat_seconds: float = 0.05
    drain_seconds: float = 2.0
    checkpoint_seconds: float = 300.0
    datasets: PretendedDatasets = field(default_factory=PretendedDatasets)
    trainer: PretendedTrainer = field(default_factory=PretendedTrainer)
    listener: Listener = field(default_factory=Listener)

    def __post_init__(self):
        self.queue = SqliteQueue(self.home / "queue.db")
        self.store = LocalObjectStore(self.home / "storage")
        self.slots = Slots([CPU])
        self.shutdown = StopSignal()
        self.host_problem = None
        self.health = Health(lambda: self.host_problem)
        self.folders = RunFolders(
            runs=self.home / "runs", views=self.home / "views", journals=self.home / "journal",
        )  # fmt: skip

    def execution(self, **parts) -> Execution:
        return Execution(self.run_host(**parts))

    def recovery(self, **parts) -> Recovery:
        return Recovery(self.run_host(**parts))

    def deliver_orphans(self, recovery=None, queue=None, stop=None) -> None:
        """Deliver the outcomes of crashed processes, as a new process would."""
        orphans = partial(orphaned_journals, self.folders.journals, "w", self.lease_seconds)
        delivery = OrphanDelivery(queue or self.queue, orphans, recovery or self.recovery())
        delivery.run(stop or StopSignal())

    def run_host(self, **parts) -> RunHost:
        reporter = parts.pop("reporter", self.listener)
        made_with = {
            "datasets": self.datasets,
            "weights": PretendedWeights(),
            "trainer": self.trainer,
            "store": self.store,
            "artifacts_bucket": BUCKET,
            "parse": plan_of,
            "folders": self.folders,
            "uploaded": self.uploaded(),
            "times": RunTimes(checkpoint=self.checkpoint_seconds, drain=self.drain_seconds),
            "health": self.health,
        }
        return RunHost(
            queue=parts.pop("queue", self.queue),
            reporter_for=lambda job: reporter,
            services=RunServices(**(made_with | parts)),
            lease_times=LeaseTimes(beat=self.beat_seconds, progress=0.0, lease=self.lease_seconds),
            liveness=Liveness(),
            timestamp_output=True,
        )

    def uploaded(self, **parts) -> UploadedCheckpoints:
        made_with = {
            "store": self.store, "bucket": BUCKET, "row_of": self.queue.get, "folders": self.folders, "keep_seconds": 60,
        }  # fmt: skip
        return UploadedCheckpoints(self.home / "uploaded", **(made_with | parts))

    def enqueue(self, configuration=None, **more) -> str:
        configuration = {"epochs": 3, "compute": "cpu"} | (configuration or {})
        return self.queue.enqueue(RunRequest(data_yaml="d/data.yaml", configuration=configuration, **more))

    def claim(self, claim_id="11111111-1111-4111-8111-111111111111", worker="w"):
        return self.queue.claim(Worker(id=worker), claim_id, self.lease_seconds)

    def work(self, lease=None, stop=None, **parts):
        """Execute one run in this thread and return how it ended."""
        return self.execution(**parts).run(lease or self.claim(), self.slots.acquire(1), stop or self.shutdown.child())

    def row(self, run_id):
        found = self.queue.get(run_id)
        return found and found.as_json()

    def kinds(self, run_id):
        return [event.kind for event in self.queue.events(run_id)]


@contextlib.contextmanager
def in_background(work):
    """Run `work` in a thread, which is joined at the end of the block."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)
        assert not thread.is_alive()
