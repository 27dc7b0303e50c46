"""What every test of the worker gets: a worker, and retries without long pauses."""

import pytest

from tests.unit.worker.daemon_harness import RecordingQueue
from tests.unit.worker.harness import WorkerFixture
from trainer.core.retry import RetryPolicy
from trainer.worker import claiming, daemon


@pytest.fixture
def worker(tmp_path):
    return WorkerFixture(tmp_path)


@pytest.fixture
def queue(worker):
    return RecordingQueue(worker)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    """The pauses between retries are 1 % of the real ones. The tries and their time limit stay the same."""
    wait_before = RetryPolicy.wait_before
    monkeypatch.setattr(RetryPolicy, "wait_before", lambda *arguments: wait_before(*arguments) / 100)
    monkeypatch.setattr(claiming, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(daemon, "POLL", 0.05)
