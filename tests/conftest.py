"""Fixtures of all tests: a clean environment, plain tracebacks in logs, and no disk syncs."""

import os
import signal
import sys

import pytest
import structlog
from PIL import Image

from trainer.disk import durable
from trainer.jobs.sqlite_file import SqliteFile
from trainer.settings import Settings

# settings of the developer or of the test runner must not change the result of a test
for name in Settings.model_fields:
    os.environ.pop(name.upper(), None)
# a test runner started with nohup ignores SIGHUP, and the services under test would inherit the ignored signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# by default, structlog formats tracebacks with rich, which takes up to a second for each traceback
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(autouse=True)
def _away_from_dotenv(monkeypatch):
    """Prevent tests from reading a `.env` file in the repository."""
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(autouse=True)
def _no_disk_syncs(monkeypatch):
    """Skip disk syncs, which matter only after a power cut. `faults/test_power_cut.py` overrides this fixture."""
    connect = SqliteFile._connect

    def connect_unsynced(self, mode):
        connection = connect(self, mode)
        connection.execute("pragma synchronous = off")
        return connection

    monkeypatch.setattr(SqliteFile, "_connect", connect_unsynced)
    monkeypatch.setattr(durable, "_SYNCFS", lambda descriptor: 0)


@pytest.fixture(autouse=True)
def _unpatched_pillow(monkeypatch):
    """Open images as the service does. Importing Ultralytics replaces `Image.open` for the whole process."""
    if patches := sys.modules.get("ultralytics.utils.patches"):
        monkeypatch.setattr(Image, "open", patches._image_open)
