"""A complete worker with an SQLite queue and fake training, datasets and weights."""

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tests.unit.worker.fakes import FakeDatasets, FakeTrainer, FakeWeights, RecordingReporter, Replaced, raising
from trainer.core.dataset import ObjectRef
from trainer.core.errors import Unavailable
from trainer.core.job import RunRequest
from trainer.core.ports import Worker
from trainer.core.run_folder import RunFolder
from trainer.core.stop import StopReason, StopSignal
from trainer.jobs.sqlite import SqliteQueue
from trainer.request.parse import plan_of
from trainer.storage.local import LocalObjectStore
from trainer.worker.execution import Execution, RunHost
from trainer.worker.health import Health
from trainer.worker.lease import LeaseTimes
from trainer.worker.liveness import Liveness
from trainer.worker.orphaned_journals import orphaned_journals
from trainer.worker.recovery import OrphanDelivery, Recovery
from trainer.worker.run_folders import RunFolders
from trainer.worker.run_services import RunServices, RunTimes
from trainer.worker.slots import CPU, Slots
from trainer.worker.uploaded_checkpoints import UploadedCheckpoints

BUCKET = "training-artifacts"

CLAIM, NEXT_CLAIM = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


@dataclass
class WorkerFixture:
    """A worker for tests. `enqueue` adds a run, `work` executes it, and `row` and `store` show its results."""

    home: Path
    lease_seconds: float = 60.0
    beat_seconds: float = 0.05
    drain_seconds: float = 2.0
    checkpoint_seconds: float = 300.0
    datasets: FakeDatasets = field(default_factory=FakeDatasets)
    trainer: FakeTrainer = field(default_factory=FakeTrainer)
    reporter: RecordingReporter = field(default_factory=RecordingReporter)

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
        reporter = parts.pop("reporter", self.reporter)
        made_with = {
            "datasets": self.datasets,
            "weights": FakeWeights(),
            "trainer": self.trainer,
            "store": self.store,
            "artifacts_bucket": BUCKET,
            "parse": plan_of,
            "folders": self.folders,
            "uploaded": self.uploaded(),
            "times": RunTimes(checkpoint=self.checkpoint_seconds, drain=self.drain_seconds),
            "health": self.health,
        }
        queue = parts.pop("queue", self.queue)
        return RunHost(
            queue=queue,
            beat=parts.pop("beat", queue.beat),
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

    def claim(self, claim_id=CLAIM, worker="w"):
        return self.queue.claim(Worker(id=worker), claim_id, self.lease_seconds)

    def work(self, lease=None, stop=None, **parts):
        """Execute one run in this thread and return the end of its attempt."""
        return self.execution(**parts).run(lease or self.claim(), self.slots.acquire(1), stop or self.shutdown.child())

    def work_again(self, **parts):
        """Execute the next attempt with a new claim, as a restarted service would."""
        return self.work(self.claim(NEXT_CLAIM), StopSignal(), **parts)

    def row(self, run_id):
        found = self.queue.get(run_id)
        return found and asdict(found)

    def kinds(self, run_id):
        return [event.kind for event in self.queue.events(run_id)]

    def warnings(self, run_id, code):
        return [e.data["message"] for e in self.queue.events(run_id) if e.kind == "warning" and e.data["code"] == code]

    def artifacts(self, run_id):
        """Return the artifacts of the row, by name."""
        return {artifact["name"]: artifact for artifact in (self.row(run_id)["results"] or {}).get("artifacts", [])}

    def stored_keys(self, prefix=""):
        return {info.ref.key for info in self.store.list(ObjectRef(bucket=BUCKET, key=prefix))}

    def update_row(self, run_id, **columns):
        """Change the row as another program would."""
        values = [json.dumps(value) if isinstance(value, dict) else value for value in columns.values()]
        assignments = ", ".join(f"{name} = ?" for name in columns)
        with self._database() as db:
            db.execute(f"update training_runs set {assignments} where id = ?", [*values, run_id])

    def delete_row(self, run_id):
        with self._database() as db:
            db.execute("pragma foreign_keys = on")
            db.execute("delete from training_runs where id = ?", [run_id])

    def forget_epochs(self, run_id, *, after):
        """Delete the epoch events after epoch `after`, as if the service was killed before it reported them."""
        with self._database() as db:
            db.execute(
                "delete from training_run_events where kind = 'epoch' and json_extract(data, '$.epoch') > ?", [after]
            )

    def shut_down_in(self, epoch):
        """Request a shutdown in epoch `epoch` of the training."""
        self.trainer.during = lambda now: self.shutdown.set(StopReason.SHUTDOWN) if now == epoch else None

    def fail_in(self, epoch, error):
        """Raise `error` in epoch `epoch` of the training."""

        def fail(now):
            if now == epoch:
                raise error

        self.trainer.during = fail

    def train_normally(self):
        self.trainer.during = lambda epoch: None

    @contextlib.contextmanager
    def _database(self):
        with contextlib.closing(sqlite3.connect(self.home / "queue.db")) as db, db:
            db.execute("pragma synchronous = off")
            yield db


def wait_for(is_true, seconds=30):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def in_background(work):
    """Run `work` in a thread. The end of the block waits for the thread."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)
        assert not thread.is_alive()


def failing_store(worker, method, errors):
    """Return the store of `worker`. Each call of its `method` raises the next of `errors`. Later calls work."""
    fail, call = raising(*errors), getattr(worker.store, method)

    def fail_or_call(*arguments, **more):
        fail()
        return call(*arguments, **more)

    return Replaced(worker.store, **{method: fail_or_call})


def assert_model_is_published(worker, run_id, content=b"the best"):
    """Assert that the run is completed and its row names the trained weights."""
    row = worker.row(run_id)
    assert row["status"] == "completed", row["error_message"]
    best = next(artifact for artifact in row["results"]["artifacts"] if artifact["name"] == "best.pt")
    assert row["trained_model_url"] == best["url"]
    assert best["sha256"] == hashlib.sha256(content).hexdigest()
    path = worker.home / "fetched"
    worker.store.download(ObjectRef(bucket=BUCKET, key=best["path"]), path, StopSignal())
    assert path.read_bytes() == content
    return row


def output_of(worker, run_id):
    """Return the folder in which the first attempt trains."""
    return RunFolder.of(worker.folders.runs, run_id, 1).output.path


def interrupted_upload(worker):
    """Interrupt the upload of a finished training by a shutdown. Return the id and the training folder of the run."""
    run_id = worker.enqueue()

    def shut_down(path, ref, stop, **more):
        stop.set(StopReason.SHUTDOWN)  # as at the end of the drain time
        worker.shutdown.set(StopReason.SHUTDOWN)
        raise Unavailable("down")

    worker.work(store=Replaced(worker.store, upload=shut_down))
    assert worker.row(run_id)["status"] == "queued"
    return run_id, output_of(worker, run_id)
