"""Fixtures of the worker tests: a worker, and retries with short pauses."""

import pytest

from tests.unit.worker.daemon_harness import RecordingQueue
from tests.unit.worker.harness import WorkerFixture
from trainer.core.retry import RetryPolicy
from trainer.storage.local import LocalObjectStore
from trainer.worker import claiming, daemon


@pytest.fixture
def worker(tmp_path):
    return WorkerFixture(tmp_path)


@pytest.fixture
def queue(worker):
    return RecordingQueue(worker)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    """Shorten the pauses between retries, claims and slot checks. The number of tries and the time limits do not change."""
    wait_before = RetryPolicy.wait_before
    monkeypatch.setattr(RetryPolicy, "wait_before", lambda *arguments: wait_before(*arguments) / 1000)
    monkeypatch.setattr(claiming, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(daemon, "POLL", 0.05)


@pytest.fixture
def run_dir(tmp_path):
    """The folder of a training. The log of the run is beside it."""
    folder = tmp_path / "train_r" / "output"
    for name, content in {
        "weights/best.pt": "best",
        "weights/last.pt": "last",
        "results.csv": "epoch",
        "labels.jpg": "picture",
        "../run.log": "log",
        "best_openvino_model/best.xml": "<net/>",
        "checkpoints/epoch-00001.pt": "state",
        ".hidden": "{}",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.fixture
def store(tmp_path):
    return LocalObjectStore(tmp_path / "storage")
