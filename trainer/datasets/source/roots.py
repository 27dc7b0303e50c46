"""The folders of this host whose files a run can read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer.core.errors import DatasetError, HostUnfit, raise_if_disk_is_broken
from trainer.core.text import shown

NO_DATASETS = ("/proc", "/sys", "/dev", "/run", "/etc")
BUT_DATASETS = ("/dev/shm", "/run/media")  # noqa: S108 - memory and removable disks


@dataclass(frozen=True)
class Roots:
    """The folders that a run is allowed to read. The dataset root is the first folder.

    `private` are folders and files of the service itself. No run can read them, except for a root inside them.
    Unless `hidden_names` is set, a run cannot read a file whose path below the root has a name that starts with a dot.
    """

    dataset_root: Path
    extra: tuple[Path, ...] = ()
    private: tuple[Path, ...] = ()
    hidden_names: bool = False

    def admit(self, path: Path | str) -> Path:
        """Return the real path of `path`. Raises `DatasetError` if the path does not exist or is outside the roots."""
        if "\0" in str(path):
            raise DatasetError(f"data_yaml: {shown(str(path))} contains a NUL character.")
        try:
            real = (self.dataset_root / path).resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
            self._require_allowed(os.path.realpath((self.dataset_root / path).parent), path)
            self._require_mounted(self.dataset_root / path)
            raise_if_disk_is_broken(error, f"data_yaml: {shown(str(path))}")
            raise DatasetError(
                f"data_yaml: {shown(str(path))} does not exist or cannot be read on this host. "
                "Check the path and its permissions."
            ) from None
        self._require_allowed(str(real), path)
        return real

    def open_parts(self, sources: Sequence[str]) -> tuple[str, ...]:
        """Return the folders and files that the checks of `sources` may read: a YAML in them can name every root.

        `sources` are the real paths of folders of the user.
        """
        if not sources:
            return ()
        private = [str(path.resolve()) for path in self.private]
        roots = [root.resolve() for root in (self.dataset_root, *self.extra)]
        # a local run can name any folder of the host
        named = (
            path
            for path in map(Path, dict.fromkeys((*sources, *BUT_DATASETS)))
            if any(map(path.is_relative_to, NO_DATASETS)) and any(map(path.is_relative_to, roots))
        )
        parts = (
            *(part for root in roots for part in _without(str(root), [*private, *NO_DATASETS])),
            *(part for path in named for part in _without(str(path), private)),
        )
        return tuple(dict.fromkeys(parts))

    @cached_property
    def _real(self) -> tuple[list[str], list[str]]:
        """The real paths of the roots and of the private folders. A dataset can have 100,000 links to check."""
        roots = (os.path.realpath(root) for root in (self.dataset_root, *self.extra))
        return list(roots), [os.path.realpath(folder) for folder in self.private]

    def _require_allowed(self, real: str, path: Path | str) -> None:
        """Raise `DatasetError` unless `real`, the real path of `path`, is in a root and not private or hidden."""
        if not any(_is_below(real, root) for root in self._real[0]):
            self.__dict__.pop("_real")  # the operator may have replaced a root that is a link
        roots, private = self._real
        around = [root for root in roots if _is_below(real, root)]
        if not around:
            raise DatasetError(
                f"data_yaml: {shown(str(path))} is outside the allowed folders. Move it into "
                "DATASET_ROOT, or let the operator add its folder to EXTRA_DATASET_ROOTS."
            )
        nearest = max(around, key=len)
        if any(_is_below(real, folder) and _is_below(folder, nearest) for folder in private):
            raise DatasetError(
                f"data_yaml: {shown(str(path))} is in a folder of the service itself, which contains the data of other "
                "runs. Name the folder of a dataset."
            )
        if not self.hidden_names and all("/." in real[len(root.rstrip("/")) :] for root in around):
            raise DatasetError(
                f"data_yaml: {shown(str(path))} is hidden: a name in its path starts with a dot. Rename it, or let the "
                "operator add its folder to EXTRA_DATASET_ROOTS."
            )

    def _require_mounted(self, path: Path) -> None:
        """Raise `HostUnfit` if an extra root is missing on this host. The folder can exist on other hosts."""
        for root in self.extra:
            if path.is_relative_to(root) and not root.exists():
                raise HostUnfit(
                    f"{root}, one of EXTRA_DATASET_ROOTS, does not exist. Mount it on this host or create it."
                )


def _is_below(real: str, folder: str) -> bool:
    """Return whether a real path is `folder` or inside it."""
    return real == folder or real.startswith(folder.rstrip("/") + "/")


def _without(folder: str, closed: Sequence[str]) -> Iterator[str]:
    """Yield the parts of a folder that are outside the folders `closed`. Links are left out."""
    below = f"{folder.rstrip('/')}/"
    inside = [path for path in closed if path == folder or path.startswith(below)]
    if not inside:
        yield folder
    elif folder not in inside:
        with contextlib.suppress(OSError):  # a folder that cannot be listed
            with os.scandir(folder) as entries:  # a folder of datasets can have thousands of entries
                children = sorted(entry.path for entry in entries if not entry.is_symlink())
            for child in children:
                yield from _without(child, inside)
