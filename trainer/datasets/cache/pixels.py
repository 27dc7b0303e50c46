"""Reuse the decoded pixels of a training (training/speedups/pixels.py) in later trainings on the same images.

In the content cache, pixels are derived files. Their identity consists of the identity of the image file, the recipe of
decoding and scaling, and the versions of the libraries. In a view, pixels are hard links:

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

FOLDER = "pixels"  # the folder of the pixels in a view
PROBES = 32  # number of images to look up before all others
RECIPES = ("{imgsz}-3-fit", "{imgsz}-3-stretch")
_MAKERS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "pillow", "ultralytics")


class PixelCache:
    """Links cached pixels into views, and moves new pixels from views into the cache.

    Images that were not passed to `link` are ignored.
    """

    def __init__(self, cache: ContentCache) -> None:
        self._cache = cache
        self._images: dict[Path, Mapping[str, str]] = {}

    def link(self, view: Path, imgsz: int, images: Mapping[str, str]) -> None:
        """Link the cached pixels of `images` into a view. `images` maps paths in the view to identities of files."""
        self._images[view] = images
        places = list(images)
        for recipe in (recipe.format(imgsz=imgsz) for recipe in RECIPES):
            # look up some images first; if none of them has cached pixels, skip all others
            some = places[:: max(1, len(places) // PROBES)]
            if any(self._link(view, recipe, place) for place in some):
                for place in places:
                    self._link(view, recipe, place)

    def _link(self, view: Path, recipe: str, place: str) -> bool:
        target = Path(f"{view}/{FOLDER}/{recipe}/{place}.npy")
        return self._cache.link_derived(_identity(self._images[view][place], recipe), target)

    def take_over(self, view: Path) -> int:
        """Move new pixels of a view into the cache while there is room. Return the number of moved files."""
        images = self._images.pop(view, {})
        try:
            found = {
                _identity(identity, recipe): path
                for recipe, place, path in _files(view / FOLDER)
                if (identity := images.get(place)) and path.stat(follow_symlinks=False).st_nlink == 1
            }
            if not found:
                return 0
            # a power cut can damage files that are not synced, and a later training checks only some of them
            sync_below(view / FOLDER)
            return self._cache.put_derived(found)
        except (MachineFailed, OSError):  # the next run will be slower, but this run must not fail
            return 0


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield the recipe, the path of the image in the view, and the path of each file. Symlinks are not followed."""
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
    """Return the names and installed versions of the libraries that affect the pixels."""
    found = []
    for name in _MAKERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)
