"""Pins keep entries in the cache: one file per pin, with the holder's folder and the names of the entries."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from trainer.datasets.cache.disk import entries


class Pins:
    """The pins of the cache in `root`. The caller holds the lock of the cache during each call."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "pins"

    def add(self, holder: Path, names: Iterable[str]) -> None:
        """Keep the entries as long as the folder `holder` exists."""
        lines = [os.path.relpath(holder.resolve(), self._root.resolve()), *sorted(set(names))]
        (self.folder / uuid.uuid4().hex).write_text("\n".join(lines))

    def held(self) -> set[str]:
        """Return the names of all pinned entries. Remove pins whose holder no longer exists."""
        names: set[str] = set()
        root = self._root.resolve()  # holders are relative paths, so that they work with another mount point
        for pin in entries(self.folder):
            if not pin.is_file(follow_symlinks=False):
                continue  # not a pin
            # a power cut may empty a pin or fill it with zeros; its run has ended, too
            holder, *pinned = Path(pin.path).read_text(errors="replace").split("\n")
            if holder and (root / holder).is_dir():
                names.update(pinned)
            else:
                Path(pin.path).unlink(missing_ok=True)
        return names
