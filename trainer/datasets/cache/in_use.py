"""Use marks: files that protect the cache entries of a run from eviction."""

from __future__ import annotations

import contextlib
import mmap
import os
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path

from trainer.datasets.cache.disk import NOT_OURS, entries


class Names:
    """A set of names in at most 16 MiB, whatever their number: a dataset can have millions of objects.

    It can also contain a few other names. Their entries stay in the cache a little longer.
    """

    def __init__(self) -> None:
        self._bits = mmap.mmap(-1, 1 << 24)  # pages that no name uses need no memory; all are returned to the system

    def add(self, name: str) -> None:
        place, bit = self._place(name)
        self._bits[place] |= bit

    def __contains__(self, name: str) -> bool:
        place, bit = self._place(name)
        return bool(self._bits[place] & bit)

    @staticmethod
    def _place(name: str) -> tuple[int, int]:
        number = zlib.crc32(name.encode("utf-8", "replace"))
        return number >> 8, 1 << (number >> 5 & 7)


class UseMarks:
    """The use marks of the cache in `root`. The caller holds the lock of the cache during each call.

    A use mark is a file: its first line is the path of a folder, the other lines are the names of entries.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "in_use"

    def add(self, user: Path, names: Iterable[str]) -> None:
        """Mark the entries as in use until the folder `user` is removed."""
        with (self.folder / uuid.uuid4().hex).open("w") as mark:
            mark.write(os.path.relpath(user.resolve(), self._root.resolve()))
            mark.writelines(f"\n{name}" for name in names)

    def names(self) -> Names:
        """Return the names of all entries in use. Remove the use marks of removed folders."""
        names = Names()
        root = self._root.resolve()  # folders are stored as relative paths, which are valid under any mount point
        for mark in entries(self.folder):
            if not mark.is_file(follow_symlinks=False):
                continue  # this service did not create the folder or link
            with contextlib.suppress(*NOT_OURS):  # this service did not create the mark, or cannot remove it
                # A power cut can leave a mark empty or full of zeros. The power cut also ended the run that used
                # the mark, so the mark can be removed.
                with Path(mark.path).open(errors="replace") as lines:
                    user = next(lines, "").rstrip("\n")
                    if user and os.path.isdir(root / user):  # noqa: PTH112 - never raises
                        for line in lines:
                            names.add(line.rstrip("\n"))
                        continue
                Path(mark.path).unlink(missing_ok=True)
        return names
