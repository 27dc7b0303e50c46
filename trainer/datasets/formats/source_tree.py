"""List images and label files of untrusted folders. Files outside the allowed folders are not listed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.core.errors import DatasetError, raise_if_disk_is_broken
from trainer.core.stop import StopSignal
from trainer.datasets.findings import Report
from trainer.datasets.image_kinds import IMAGE_SUFFIXES

MAX_DEPTH = 20  # levels of folders
MAX_FILES = 5_000_000


@dataclass
class Listing:
    """The content of one folder. `images` maps file names to paths, `texts` maps stems to paths."""

    images: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class Tree:
    """A source on disk. Each folder is read once. Symlinks are followed only where `admit` allows it.

    `admit` returns the real path of an allowed file or folder, and raises `DatasetError` for any other path.
    `is_owned`: the files are in our cache, not in the user's folder.
    """

    def __init__(
        self, root: Path, admit: Callable[[Path], Path], report: Report, stop: StopSignal, *, is_owned: bool
    ) -> None:
        self.root = root
        self.is_owned = is_owned
        self.stop = stop
        self._admit = admit
        self._report = report
        self._listings: dict[str, Listing] = {}
        self._files = 0

    def listing(self, folder: str) -> Listing:
        """Return the files and folders in a folder, or an empty listing if the folder does not exist."""
        if folder not in self._listings:
            self._listings[folder] = self._read(folder)
        return self._listings[folder]

    def admitted(self, path: str) -> str | None:
        """Return the real path, or None if the path does not exist. Raises `DatasetError` for a forbidden path."""
        return str(self._admit(Path(path))) if os.path.lexists(path) else None

    def below(self, folder: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Listing]]:
        """Yield a folder and all its subfolders, ordered by name. A symlink to a parent folder is not followed."""
        listing = self.listing(folder)
        yield folder, listing
        above = (*above, os.path.realpath(folder))
        if len(above) > MAX_DEPTH:
            raise DatasetError(f"{self.relative(folder)}: folders are nested more than {MAX_DEPTH} levels deep.")
        for name in listing.folders:
            if os.path.realpath(f"{folder}/{name}") not in above:
                yield from self.below(f"{folder}/{name}", above)

    def has_images(self, folder: str) -> bool:
        """Return whether the folder or one of its subfolders contains an image."""
        return any(listing.images for _, listing in self.below(folder))

    def _read(self, folder: str) -> Listing:
        self.stop.raise_if_set()
        listing = Listing()
        if os.path.lexists(folder) and not self._may_read(folder):
            return listing
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return listing
        except OSError as error:
            raise_if_disk_is_broken(error, f"The folder {self.relative(folder)}")
            raise DatasetError(f"The folder {self.relative(folder)} cannot be read: {error.strerror}.") from None
        self._files += len(ordered)
        if self._files > MAX_FILES:
            raise DatasetError(f"The dataset has more than {MAX_FILES} files.")
        for entry in ordered:
            if entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                _add_file(listing, entry.name, f"{folder}/{entry.name}")
            else:
                self._add_other(entry, folder, listing)
        return listing

    def _add_other(self, entry: os.DirEntry[str], folder: str, listing: Listing) -> None:
        name = entry.name
        if name.startswith(".") or name == "__MACOSX":
            # macOS adds a ._ file to each file; all other hidden images are reported
            if name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and not name.startswith("._"):
                self._report.add("image_hidden", self.relative(f"{folder}/{name}"))
            return
        path = f"{folder}/{name}"
        if entry.is_symlink():
            target = self._followed(path)
            if target is None:
                return
            path = target
        if entry.is_dir():
            listing.folders.append(name)
        elif entry.is_file():
            _add_file(listing, name, path)
        else:
            listing.others.append(name)

    def _followed(self, path: str) -> str | None:
        try:
            return str(self._admit(Path(path)))
        except DatasetError:
            self._report.add("symlink_outside", self.relative(path))
            return None

    def _may_read(self, folder: str) -> bool:
        """Return whether the folder is allowed. A private folder of the service inside the tree is not reported."""
        try:
            self._admit(Path(folder))
        except DatasetError:
            if os.path.realpath(folder) != folder:
                self._report.add("symlink_outside", self.relative(folder))
            return False
        return True

    def relative(self, path: str) -> str:
        """Return the path relative to the source, for messages."""
        return path.removeprefix(f"{self.root}/")


def _add_file(listing: Listing, name: str, path: str) -> None:
    stem, _, suffix = name.rpartition(".")
    suffix = suffix.lower()
    if stem and suffix in IMAGE_SUFFIXES:
        listing.images[name] = path
    elif stem and suffix == "txt":
        listing.texts[stem] = path
    else:
        listing.others.append(name)


def label_files(tree: Tree, folder: str, images: Sequence[str]) -> dict[str, str]:
    """Return the label files for the images in `folder`, by stem, from this folder or from a `labels` folder."""
    stems = {name.rpartition(".")[0] for name in images}
    for candidate in _label_folders(folder):
        texts = tree.listing(candidate).texts
        if not stems.isdisjoint(texts):
            return texts
    return {}


def _label_folders(folder: str) -> Iterator[str]:
    head, found, tail = f"{folder}/".rpartition("/images/")
    if found:
        yield f"{head}/labels/{tail}".rstrip("/")
    yield folder
    parent, _, name = folder.rpartition("/")
    if found:
        yield f"{head}/labels"
        above, _, split = head.rpartition("/")
        yield f"{above}/labels/{split}"
    yield f"{folder}/labels"
    yield f"{parent}/labels/{name}"
    yield f"{parent}/labels"
