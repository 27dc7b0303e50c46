"""Programs that another user executes, and a folder with files that this user can read."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

PYTHON = shutil.which("python3", path="/usr/bin")
OTHER_USER = 65534
needs_other_user = pytest.mark.skipif(
    os.geteuid() != 0 or not PYTHON or not shutil.which("setpriv"),
    reason="needs root, setpriv, and a Python in /usr/bin that other users can execute",
)


def as_user(user):
    """Return the start of a command of the user."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


@contextmanager
def readable_folder():
    """Yield a folder in which other users can read the files with the usual modes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
