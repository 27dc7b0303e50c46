"""Use marks: files that protect the cache entries of a run from eviction."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from trainer.datasets.cache.disk import NOT_OURS, entries


class UseMarks:
    """The use marks of the cache in `root`. The caller holds the lock of the cache during each call.

    A use mark is a file: its first line is the path of a folder, the other lines are the names of entries.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "in_use"

    def add(self, user: Path, names: Iterable[str]) -> None:
        """Mark the entries as in use until the folder `user` is removed."""
        lines = [os.path.relpath(user.resolve(), self._root.resolve()), *sorted(set(names))]
        (self.folder / uuid.uuid4().hex).write_text("\n".join(lines))

    def names(self) -> set[str]:
        """Return the names of all entries in use. Remove the use marks of removed folders."""
        names: set[str] = set()
        root = self._root.resolve()  # folders are stored as relative paths, which are valid under any mount point
        for mark in entries(self.folder):
            if not mark.is_file(follow_symlinks=False):
                continue  # this service did not create the folder or link
            with contextlib.suppress(*NOT_OURS):  # this service did not create the mark, or cannot remove it
                # A power cut can leave a mark empty or full of zeros. The power cut also ended the run that used
                # the mark, so the mark can be removed.
                user, *marked = Path(mark.path).read_text(errors="replace").split("\n")
                if user and os.path.isdir(root / user):  # noqa: PTH112 - never raises
                    names.update(marked)
                else:
                    Path(mark.path).unlink(missing_ok=True)
        return names
