"""Pixels that one training kept (training/fast_loader.py) are there for the next one on the same images.

In the content cache they are spares, by what they were made from: the image file's identity, the recipe by which they
were decoded and scaled, and the versions of what did it. In a view they are links:

    view/pixels/RECIPE/images/train/a.jpg.npy
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from trainer.core.errors import MachineFailed
from trainer.datasets.cache.content import ContentCache
from trainer.disk.durable import sync_below

FOLDER = "pixels"  # in a view
LOOKS = 32  # images
RECIPES = ("{imgsz}-3-fit", "{imgsz}-3-stretch")
_MAKERS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "pillow", "ultralytics")


class KeptPixels:
    """Remembers, for each view, the images of which pixels may be kept: only under their names is anything taken over."""

    def __init__(self, cache: ContentCache) -> None:
        self._cache = cache
        self._images: dict[Path, Mapping[str, str]] = {}

    def link(self, view: Path, imgsz: int, images: Mapping[str, str]) -> None:
        """Link what is known of the view's `images`: where each is in the view → the identity of its file."""
        self._images[view] = images
        places = list(images)
        for recipe in (recipe.format(imgsz=imgsz) for recipe in RECIPES):
            # a look at some tells whether it is worth asking for all
            some = places[:: max(1, len(places) // LOOKS)]
            if any(self._lend(view, recipe, place) for place in some):
                for place in places:
                    self._lend(view, recipe, place)

    def _lend(self, view: Path, recipe: str, place: str) -> bool:
        target = Path(f"{view}/{FOLDER}/{recipe}/{place}.npy")
        return self._cache.lend_spare(_identity(self._images[view][place], recipe), target)

    def take_over(self, view: Path) -> int:
        """Move what is new in the view into the cache, as far as there is room; how many images' pixels."""
        images = self._images.pop(view, {})
        try:
            found = {
                _identity(identity, recipe): path
                for recipe, place, path in _files(view / FOLDER)
                if (identity := images.get(place)) and path.stat(follow_symlinks=False).st_nlink == 1
            }
            if not found:
                return 0
            sync_below(view / FOLDER)  # a later training compares only a few of them with their images
            return self._cache.put_spares(found)
        except (
            MachineFailed,
            OSError,
        ):  # whatever the disk has against it makes the next run slower, and must not undo this one
            return 0


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Recipe, place of the image in the view, and file. Symlinks are not followed."""
    for root, _, names in os.walk(folder):
        recipe, _, below = os.path.relpath(root, folder).partition("/")
        for name in names:
            path = Path(root, name)
            if name.endswith(".npy") and not name.startswith(".") and not path.is_symlink():
                yield recipe, f"{below}/{name.removesuffix('.npy')}", path


def _identity(image: str, recipe: str) -> str:
    return f"pixels\n{_makers()}\n{recipe}\n{image}"


@cache
def _makers() -> str:
    """The installed versions of all that decides about a pixel."""
    found = []
    for name in _MAKERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)
