"""Removal of a folder with untrusted content.

The names in the folder come from a training process. So this code follows no symbolic link, builds no path from names,
and works at any depth. `shutil.rmtree` is not used: it recurses once per level of folders, and raises RecursionError at
about 1,000 levels.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

AT_ONCE = 1000  # maximum number of entries to read in one step
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: Path) -> None:
    """Remove `folder` and its content. Targets of symbolic links are not removed.

    Missing permissions of folders are added first. Raises FileNotFoundError if `folder` does not exist, and
    NotADirectoryError if it is not a folder. Another OSError is raised only after all other entries are removed.
    """
    _remove(folder.name, os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def remove_subfolder(parent: Path, name: str) -> None:
    """Remove the folder `name` in `parent`, like `remove_tree`. Raises OSError if `parent` is a link."""
    _remove(name, os.open(parent, _FOLDER))


def _remove(name: str, parent: int) -> None:
    """Remove the folder `name` in the open folder `parent`, which is then closed."""
    try:
        # several tries: another process can remove the same folder at the same time and move subfolders up
        for is_last in (False, False, True):
            with _opened(name, parent) as top:
                problem = _empty(top)
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError as error:
                if is_last or error.errno != errno.ENOTEMPTY:
                    raise problem or error from None
            else:
                return
    finally:
        os.close(parent)


def _empty(top: int) -> OSError | None:
    """Remove the content of `top`: move all subfolders up into it, then remove them. Return the first error."""
    waiting, problem = _strip(top, top)
    while waiting:
        name = waiting.pop()
        try:
            with _opened(name, top) as folder:
                found, failed = _strip(folder, top)
            waiting += found
            problem = problem or failed
            if not failed:
                os.rmdir(name, dir_fd=top)
        except FileNotFoundError:
            continue  # another process has removed it
        except OSError as error:
            problem = problem or error
    return problem


def _strip(folder: int, top: int) -> tuple[list[str], OSError | None]:
    """Remove the files in `folder` and move its folders into `top`. Return the new folder names and the first error."""
    moved: list[str] = []
    problem: OSError | None = None
    seen: set[str] = set()  # entries to skip: folders of `top`, and entries that cannot be removed
    while entries := _next(folder, seen):
        for name, is_folder in entries:
            try:
                if not is_folder:
                    os.unlink(name, dir_fd=folder)
                elif folder == top:
                    seen.add(name)
                    moved.append(name)
                else:
                    moved.append(_move_up(name, folder, top))
            except FileNotFoundError:
                continue
            except OSError as error:
                seen.add(name)
                problem = problem or error
    return moved, problem


def _next(folder: int, seen: set[str]) -> list[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        fresh = (entry for entry in entries if entry.name not in seen)
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(fresh, AT_ONCE)]


def _move_up(name: str, folder: int, top: int) -> str:
    moved = uuid.uuid4().hex
    try:
        os.rename(name, moved, src_dir_fd=folder, dst_dir_fd=top)
    except PermissionError:  # a folder must be writable to be moved to another folder
        with _opened(name, folder):
            os.rename(name, moved, src_dir_fd=folder, dst_dir_fd=top)
    return moved


@contextmanager
def _opened(name: str, parent: int) -> Iterator[int]:
    """Yield a descriptor of the folder. If possible, add the permissions to read and change the folder."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        # between two calls, a link can replace the folder; a descriptor always refers to the same folder
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101
            folder = os.open(name, _FOLDER, dir_fd=parent)
        finally:
            os.close(handle)
    try:
        if not os.access(name, os.W_OK | os.X_OK, dir_fd=parent):
            os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)
