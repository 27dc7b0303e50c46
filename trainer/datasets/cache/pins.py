"""Who uses which entries of the cache: one file per pin, the holder's folder and then the entries' names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from trainer.datasets.cache.disk import entries


class Pins:
    """The pins in a folder of the cache `root`; its lock is held during each call."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "pins"

    def add(self, holder: Path, names: Iterable[str]) -> None:
        """Keep the entries as long as the folder `holder` exists."""
        lines = [os.path.relpath(holder.resolve(), self._root.resolve()), *sorted(set(names))]
        (self.folder / uuid.uuid4().hex).write_text("\n".join(lines))

    def held(self) -> set[str]:
        """The names of the entries that are in use. Pins without a holder are removed."""
        names: set[str] = set()
        root = self._root.resolve()  # holders are relative, so that they hold under another mount point too
        for pin in entries(self.folder):
            if not pin.is_file(follow_symlinks=False):
                continue  # not ours
            # a power cut empties a pin or fills it with zeros: its run is over, too
            holder, *pinned = Path(pin.path).read_text(errors="replace").split("\n")
            if holder and (root / holder).is_dir():
                names.update(pinned)
            else:
                Path(pin.path).unlink(missing_ok=True)
        return names
