"""Fakes: training, datasets, weights, a reporter, and a store or queue with replaced or failing methods."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from trainer.core.dataset import PreparedDataset, Task
from trainer.core.errors import Unavailable
from trainer.core.events import CheckpointSaved, EpochFinished, Finished, WeightsFile
from trainer.core.stop import StopSignal


class FakeDatasets:
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

    def warm(self):
        pass

    def discard(self, view, *, keep=False):
        if not keep:
            shutil.rmtree(view, ignore_errors=True)


class FakeWeights:
    def resolve(self, model, task, stop, requester):
        return Path("yolo11n.yaml")


class FakeTrainer:
    """Trains for `epochs` epochs without delay.

    `during` is called in each epoch. This function can raise an error, set a stop signal, or wait for `stop`.
    """

    def __init__(self, epochs: int = 3):
        self.epochs = epochs
        self.batch = None  # the batch size in the report of the training
        self.during: Callable[[int], None] = lambda epoch: None
        self.orders = []
        self.test = lambda devices: None  # the problem of the host without a run
        self.stop = StopSignal()  # the stop signal of the current training

    def train(self, order, stop, on_event, on_line):
        self.orders.append(order)
        self.stop = stop
        weights = order.run_dir / "weights"
        weights.mkdir(parents=True, exist_ok=True)
        on_line("training started")
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
    return WeightsFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def save_checkpoint(run_dir: Path, epoch: int) -> CheckpointSaved:
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    content = b"state after %d" % epoch
    path = folder / f"epoch-{epoch:05d}.pt"
    path.write_bytes(content)
    facts = {"epoch": epoch, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return CheckpointSaved(**facts)


class RecordingReporter:
    def __init__(self):
        self.calls = []
        self.ends = []

    def started(self, job):
        self.calls.append("started")

    def event(self, job, event):
        self.calls.append(event)

    def ended(self, job, end):
        self.calls.append(end.outcome)
        self.ends.append(end)


class Replaced:
    """A store or queue with some methods replaced."""

    def __init__(self, replaced, **methods):
        self._replaced = replaced
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(self._replaced, name)


def raising(*errors):
    """Return a function that raises one of `errors` per call. After the last error, the function does nothing."""
    remaining = iter(errors)

    def fail(*_, **__):
        for error in remaining:
            raise error

    return fail


class Down:
    """A store whose uploads fail after `seconds`."""

    def __init__(self, worker, error=None, seconds=0.0):
        self.worker, self.error, self.seconds, self.tries = worker, error or Unavailable("down"), seconds, 0

    def __getattr__(self, name):
        return getattr(self.worker.store, name)

    def upload(self, path, ref, stop, **more):
        self.tries += 1
        if stop.wait(self.seconds):
            stop.raise_if_set()
        raise self.error
