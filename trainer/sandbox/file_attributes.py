"""Lets the functions of `shutil` copy files in a process that cannot change attributes of files (see seccomp.py)."""

from __future__ import annotations

import shutil


def copy_without_attributes() -> None:
    """From now on, `shutil` copies the content of files, but not their modes, times and extended attributes."""
    shutil.copymode = shutil.copystat = _ignore  # type: ignore[assignment]


def _ignore(_source: object, _target: object, *, follow_symlinks: bool = True) -> None:
    """Replace a function that would fail."""
