"""What every test gets: a clean environment, short tracebacks in logs, and no waiting for the disk."""

import os
import signal

import pytest
import structlog

from trainer.disk import durable
from trainer.jobs.sqlite_file import SqliteFile
from trainer.settings import Settings

# a developer's own settings, or the test runner's, must not decide what a test sees
for name in Settings.model_fields:
    os.environ.pop(name.upper(), None)
# nor must a runner that was started with nohup, whose ignored signal the services under test would inherit
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# structlog's default formats tracebacks with rich, which takes up to a second each
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(autouse=True)
def _away_from_dotenv(monkeypatch):
    """A `.env` in the repository must not be read."""
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(autouse=True)
def _no_disk_syncs(monkeypatch):
    """Skip syncs, which only a power cut needs. `faults/test_power_cut.py` overrides this; tests of syncs replace them again."""
    connect = SqliteFile._connect

    def connect_unsynced(self, mode):
        connection = connect(self, mode)
        connection.execute("pragma synchronous = off")
        return connection

    monkeypatch.setattr(SqliteFile, "_connect", connect_unsynced)
    monkeypatch.setattr(durable, "_SYNCFS", lambda descriptor: 0)
