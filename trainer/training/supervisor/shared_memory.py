"""Files that a training left in /dev/shm. They would fill the memory of the host, and later trainings could read them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil

from trainer.disk.removal import remove_tree
from trainer.training.supervisor.subreaper import descendants

_FOLDER = Path("/dev/shm")  # noqa: S108 - the C library always uses this folder

_AT_ONCE = 50_000  # names in memory: a training can create millions of files


class SharedMemory:
    """The files in the folder of shared memory at one time. `remove_new` removes the files that were added since."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._folder = folder
        self._before = set(islice(self._own_files(), _AT_ONCE))

    def remove_new(self) -> None:
        """Remove the new files of this user that no process uses. Another training may have added some of them.

        A process that uses a removed file is not affected, because it keeps its memory. Nothing is removed if this user
        also runs other programs, because the files could belong to them, or if there were too many files before.
        """
        if len(self._before) == _AT_ONCE:
            return
        kept: set[str] = set()  # names that are in use or cannot be removed
        while new := self._new_names(kept):
            if not _is_only_program_of_user():
                return
            in_use = new & set(self._names_in_use())
            kept |= in_use
            for name in new - in_use:
                try:
                    _remove(self._folder / name)
                except FileNotFoundError:  # another thread has removed the file
                    continue
                except OSError:
                    kept.add(name)

    def _new_names(self, kept: set[str]) -> set[str]:
        new = (name for name, inode in self._own_files() if name not in kept and (name, inode) not in self._before)
        return set(islice(new, _AT_ONCE))

    def _own_files(self) -> Iterator[tuple[str, int]]:
        """Yield the name and the inode of each file or folder of this user."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                        yield entry.name, entry.inode()

    def _names_in_use(self) -> Iterator[str]:
        """Yield the names that a process of this user has opened or mapped; for a folder, the folder's name."""
        prefix = f"{self._folder}/"
        for pid in psutil.pids():
            for path in _used_paths(Path(f"/proc/{pid}")):
                if path.startswith(prefix):
                    yield path.removeprefix(prefix).partition("/")[0]


def _is_only_program_of_user() -> bool:
    """Return whether all processes of this user are this process and its descendants."""
    own = {os.getpid(), *descendants(os.getpid())}
    for pid in set(psutil.pids()) - own:
        with contextlib.suppress(OSError):  # the process has ended
            if Path(f"/proc/{pid}").stat().st_uid == os.geteuid():
                return False
    return True


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except IsADirectoryError:
        remove_tree(path)


def _used_paths(process: Path) -> Iterator[str]:
    # the process can end meanwhile, and the files of another user cannot be read
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_bytes().splitlines():
            yield os.fsdecode(line.split(maxsplit=5)[-1])
