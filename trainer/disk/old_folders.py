"""Removal of old folders that this or another process created. They can have any content."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import structlog

from trainer.disk.folder_locks import FolderLocks, Use, locked_folder
from trainer.disk.removal import remove_tree

log = structlog.get_logger()

_REMOVING = ".removing-"


@dataclass(eq=False)
class OldFolders:
    """Removes the folders `PREFIX…` directly in `root` that are not needed any more.

    A folder stays while it is locked, or while `is_needed` returns True for its name without the prefix. Otherwise the
    folder of a crashed process is removed after `left_seconds`, and any other folder after `keep_seconds`. Both periods
    start with the last change of the folder or of an entry directly in it. If `only_own` is set, other users can create
    folders in `root`, and their folders are ignored.
    """

    root: Path
    prefix: str
    locks: FolderLocks
    _: KW_ONLY
    keep_seconds: float
    left_seconds: float
    is_needed: Callable[[str], bool] = lambda _: False
    only_own: bool = False
    _reported: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._keep_seconds = {Use.UNKNOWN: self.keep_seconds, Use.LEFT: self.left_seconds}

    def sweep(self) -> None:
        """Remove the folders that are no longer needed. A failed removal is logged once and retried at each sweep."""
        self.locks.refresh()
        try:
            with os.scandir(self.root) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except FileNotFoundError:
            return
        except OSError as error:
            self._report(self.root, error)
            return
        for name, is_folder in found:
            path = self.root / name
            try:
                self._sweep_entry(path, is_folder=is_folder)
            except FileNotFoundError:
                continue  # another process sweeps the same folders
            except OSError as error:
                self._report(path, error)

    def _sweep_entry(self, path: Path, *, is_folder: bool) -> None:
        if self.only_own and os.lstat(path).st_uid != os.geteuid():
            return
        owner = locked_folder(path)
        if path.name.startswith(_REMOVING):
            self._remove(path, is_folder=is_folder)
        elif is_folder and path.name.startswith(self.prefix):
            self._sweep_folder(path)
        elif owner is not None and owner.name.startswith(self.prefix) and not os.path.lexists(owner):
            with self.locks.taken(owner):  # this removes the lock file
                return

    def _sweep_folder(self, folder: Path) -> None:
        name = folder.name.removeprefix(self.prefix)
        if self.is_needed(name) or not _is_older(folder, min(self._keep_seconds.values())):
            return
        with self.locks.taken(folder) as use:
            if use is Use.IN_USE or self.is_needed(name) or not _is_older(folder, self._keep_seconds[use]):
                return
            renamed = _renamed(folder)  # the lock is released before the removal
        log.info("removing old folder", folder=_shown(folder))
        self._remove(renamed, is_folder=True)

    def _remove(self, path: Path, *, is_folder: bool) -> None:
        if is_folder:
            remove_tree(path)
        else:
            path.unlink()

    def _report(self, path: Path, error: OSError) -> None:
        if path.name not in self._reported:
            self._reported.add(path.name)
            log.warning("old folder cannot be removed, trying again later", folder=_shown(path), error=str(error))


def remove_renamed(folder: Path) -> None:
    """Rename and remove `folder`. Raises OSError if it cannot be renamed. A sweep removes what is left of it."""
    renamed = _renamed(folder)
    try:
        remove_tree(renamed)
    except OSError as error:
        log.warning("old folder cannot be removed, trying again later", folder=_shown(folder), error=str(error))


def _renamed(folder: Path) -> Path:
    """Rename the folder first, because a partially removed folder must not look complete."""
    renamed = folder.with_name(f"{_REMOVING}{uuid.uuid4().hex}")
    folder.rename(renamed)
    return renamed


def _is_older(folder: Path, seconds: float) -> bool:
    """Return whether `folder` and all entries directly in it have not changed for `seconds`."""
    since = time.time() - seconds
    if _changed(os.lstat(folder)) > since:
        return False
    try:
        with os.scandir(folder) as entries:
            return all(_entry_changed(entry) <= since for entry in entries)
    except PermissionError:
        return True  # no process can use the folder


def _entry_changed(entry: os.DirEntry[str]) -> float:
    try:
        return _changed(entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return time.time()


def _changed(found: os.stat_result) -> float:
    # a process can set the modification time to any value, but not the change time
    return min(found.st_mtime, found.st_ctime)


def _shown(path: Path) -> str:
    return ascii(str(path))  # a name may contain line breaks and bytes that are not text
