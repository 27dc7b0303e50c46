"""Matplotlib's list of the fonts of this host. Making it takes seconds with many fonts, so each training gets a copy.

Only the supervisor writes the list that is copied, because a training could change the list for later trainings.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from trainer.disk.removal import remove_tree
from trainer.training.supervisor.environment import FONTS, child_environment, private_folder

_SECONDS = 60.0  # time limit


def make_font_list(home: Path, environment: Mapping[str, str]) -> None:
    """Make the list for this version of matplotlib, unless it exists. Raises OSError.

    `home` contains the private folders of training processes, and `environment` is the environment of the supervisor.
    """
    kept = _kept(home)
    if kept is None or kept.exists():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder = private_folder(home, home)
    command = [sys.executable, "-c", "import matplotlib.font_manager"]
    try:
        subprocess.run(
            command, env=child_environment(environment, folder, devices=()), cwd=folder / "tmp", timeout=_SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        (folder / FONTS).rename(kept)
    except subprocess.SubprocessError:
        return  # each training makes its own list
    finally:
        remove_tree(folder)


def copy_font_list(home: Path, folder: Path) -> None:
    """Copy the list, if it exists, into the private folder of a training process. Raises OSError."""
    kept = _kept(home)
    if kept:
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(kept, folder / FONTS)


def _kept(home: Path) -> Path | None:
    """Return the folder of the list for the installed matplotlib, or None: the training reports that it is missing.

    `importlib.metadata` would find the version, but costs the service 1 MiB of memory.
    """
    matplotlib = importlib.util.find_spec("matplotlib")  # this finds the package without an import
    return home / f"fonts-{Path(matplotlib.origin).stat().st_mtime_ns}" if matplotlib and matplotlib.origin else None
