"""Reuse the decoded pixels of a training (training/speedups/pixels.py) in later trainings on the same images.

In the content cache, pixels are derived files. Their identity consists of the owner of the run, the identity of the image
file, the recipe of decoding and scaling, and the versions of the libraries. So the code of a training never chooses the
pixels of another owner. In the folder of a run, pixels are hard links beside the view: the training process can read them,
and writes new pixels into its view (core/stored_pixels.py):

    run_ID/pixels/RECIPE/images/train/a.jpg.npy     run_ID/view/pixels/RECIPE/images/train/a.jpg.npy
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from pathlib import Path

from trainer.core.errors import MachineFailed
from trainer.core.packed import Packed
from trainer.core.stored_pixels import (
    CHANNELS,
    FOLDER,
    RECIPES,
    TRAILER_BYTES,
    ImageVersion,
    most_bytes,
    recipe,
    size_in,
)
from trainer.datasets.cache.content import ContentCache
from trainer.disk.durable import sync_below
from trainer.disk.untrusted_folder import UntrustedFolder

PROBES = 32  # number of images to look up before all others
_MAKERS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "pillow", "ultralytics")
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class _Images:
    """The images of a view whose pixels are kept."""

    owner: str | None
    imgsz: int
    identities: Packed[tuple[str, str]]  # place in the view, identity of the file

    @property
    def pixels(self) -> Iterator[tuple[str, str, str]]:
        """Yield the recipe, the place and the identity of the image for each file with pixels."""
        for name in self.recipes:
            for place, identity in self.identities:
                yield name, place, identity

    @property
    def recipes(self) -> list[str]:
        return [recipe(self.imgsz, CHANNELS, way) for way in RECIPES]

    def identity(self, image: str, recipe: str) -> str:
        """Return the identity of the pixels in the cache. `image` is the identity of the image."""
        return f"pixels\n{self.owner!r}\n{_makers()}\n{recipe}\n{image}"


class PixelCache:
    """Links cached pixels into the folder of a run, and moves new pixels from its view into the cache.

    Images that were not passed to `link` are ignored.
    """

    def __init__(self, cache: ContentCache) -> None:
        self._cache = cache
        self._images: dict[Path, _Images] = {}

    def link(self, view: Path, imgsz: int, identities: Iterable[tuple[str, str]], owner: str | None) -> None:
        """Link the owner's cached pixels beside a view. `identities` are places in the view and identities of files."""
        safe = Packed((place, key) for place, key in identities if _is_inside(place))
        images = self._images[view] = _Images(owner, imgsz, safe)
        for name in images.recipes:
            # look up some images first; if none of them has cached pixels, skip all others
            some = islice(safe, 0, None, max(1, len(safe) // PROBES))
            if any(self._link(view, images, name, *pair) for pair in some):
                for pair in safe:
                    self._link(view, images, name, *pair)

    def _link(self, view: Path, images: _Images, recipe: str, place: str, image: str) -> bool:
        target = view.parent / FOLDER / recipe / f"{place}.npy"
        return self._cache.link_derived(images.identity(image, recipe), target)

    def take_over(self, view: Path) -> int:
        """Move new pixels of a view into the cache while there is room. Return the number of moved files.

        The training process must have ended. It wrote the view, so only regular files with expected names and sizes are
        moved, and no link is followed.
        """
        images = self._images.pop(view, None)
        if images is None:
            return 0
        try:
            with self._cache.temporary() as staging:
                staging.mkdir()
                if not _move_all(view, images, staging):
                    return 0
                # a power cut can damage files that are not synced, and a later training checks only some of them
                sync_below(staging)
                return self._cache.put_derived(_moved(images, staging))
        except (MachineFailed, OSError):  # the next run will be slower, but this run must not fail
            return 0


def _move_all(view: Path, images: _Images, staging: Path) -> int:
    """Move the pixels of the images into the folder `staging`, with their numbers as names. Return the number of files."""
    moved = 0
    numbered = enumerate(images.pixels)
    with UntrustedFolder(view) as made:
        for (name, folder), members in groupby(numbered, lambda each: (each[1][0], each[1][1].rpartition("/")[0])):
            with contextlib.suppress(OSError), made.opened((FOLDER, name, *folder.split("/"))) as descriptor:
                for number, (_, place, identity) in members:
                    moved += _move(descriptor, place, identity, images.imgsz, staging / str(number))
    return moved


def _moved(images: _Images, staging: Path) -> Iterator[tuple[str, Path]]:
    """Yield the identity and the path of each file that was moved."""
    for number, (name, _, identity) in enumerate(images.pixels):
        if os.path.lexists(f"{staging}/{number}"):
            yield images.identity(identity, name), staging / str(number)


def _move(folder: int, place: str, image: str, imgsz: int, target: Path) -> bool:
    """Move a file with the pixels of an image out of an open folder. Return whether the file was moved."""
    name = f"{place.rpartition('/')[2]}.npy"
    try:
        descriptor = os.open(name, _FILE, dir_fd=folder)
    except OSError:  # the training did not store this image, or left a link
        return False
    try:
        found = os.fstat(descriptor)
        is_expected = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size <= most_bytes(imgsz)
        if not is_expected or found.st_size <= TRAILER_BYTES:
            return False
        end = os.pread(descriptor, TRAILER_BYTES, found.st_size - TRAILER_BYTES)
        if size_in(end, _version(image)) is None:
            return False
        os.rename(name, target, src_dir_fd=folder)
        return os.path.samestat(found, os.lstat(target))
    finally:
        os.close(descriptor)


def _is_inside(place: str) -> bool:
    """Return whether a place has only names of files and folders, and so is inside of its view."""
    return not {"", ".", ".."} & set(place.split("/")) and "\0" not in place


def _version(identity: str) -> ImageVersion:
    """Return the version of the image in an identity of `images.facts_cache`."""
    _, inode, size, modified, _ = identity.split(".")
    return ImageVersion(int(inode), int(size), int(modified))


@cache
def _makers() -> str:
    """Return the names and installed versions of the libraries that affect the pixels."""
    found = []
    for name in _MAKERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)
