"""What every test gets: a clean environment."""

import os
import signal
import sys

import pytest
from PIL import Image

from trainer.settings import Settings

# a developer's own settings, or the test runner's, must not decide what a test sees
for name in Settings.model_fields:
    os.environ.pop(name.upper(), None)
# nor must a runner that was started with nohup, whose ignored signal the services under test would inherit
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _away_from_dotenv(monkeypatch):
    """A `.env` in the repository must not be read."""
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(autouse=True)
def _pillow_alone(monkeypatch):
    """As in the service, which never imports Ultralytics: that replaces Image.open for the whole process."""
    if patches := sys.modules.get("ultralytics.utils.patches"):
        monkeypatch.setattr(Image, "open", patches._image_open)
