"""An image is decoded and scaled down once in a run, not once in every epoch: the pixels are kept in the run's view.

What Ultralytics' `load_image` returned the first time is what it finds the next time, with the size that the image had
before, so a training gets the same bits and its random numbers are drawn in the same order. Classification reads its
images elsewhere and stays as it is. Losing a kept file costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import struct
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ultralytics.data.base import BaseDataset

FOLDER = "pixels"  # in the view
_SHARE_OF_FREE = 4  # at most a quarter of what is free on the disk
_END = struct.Struct("<4sII")  # a mark, height and width of the image, behind the array, where numpy does not look
_MARK = b"SIZE"
Loaded: TypeAlias = tuple[np.ndarray, tuple[int, int], tuple[int, int]]


def install(most_bytes: int) -> None:
    """Keep pixels of up to about `most_bytes` for each split from now on. Call it once, after imports."""
    original = BaseDataset.load_image

    @functools.wraps(original)
    def load_image(self: Any, i: int, rect_mode: bool = True, resize_short: bool = False) -> Loaded:
        place = None if self.ims[i] is not None or resize_short else _place(self, i, rect_mode, most_bytes)
        if place is None:
            loaded: Loaded = original(self, i, rect_mode, resize_short)
            return loaded
        self.npy_files[i] = place  # which Ultralytics reads instead of the image, unless it is older
        size = _kept_size(place)
        image, found, scaled = original(self, i, rect_mode, resize_short)
        if size is None or found != scaled:  # decoded just now
            if size is None:
                _keep(place, image, found)
            return image, found, scaled
        if self.im_hw0[i] is not None:  # buffered for mosaics
            self.im_hw0[i] = size
        return image, size, scaled

    BaseDataset.load_image = load_image


def _place(dataset: Any, i: int, rect_mode: bool, most_bytes: int) -> Path | None:
    """Where the pixels of image i are kept; None: nowhere."""
    view = getattr(dataset, "data", {}).get("path")
    if view is None or dataset.cache or not isinstance(dataset.imgsz, int):
        return None
    if not hasattr(dataset, "kept_images"):
        room = min(most_bytes, shutil.disk_usage(view).free // _SHARE_OF_FREE)
        dataset.kept_images = room // (dataset.imgsz**2 * dataset.channels)
    if i >= dataset.kept_images:
        return None
    key = f"{dataset.im_files[i]}\0{dataset.imgsz}\0{dataset.channels}\0{rect_mode}"
    return Path(view, FOLDER, f"{hashlib.blake2b(key.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()}.npy")


def _kept_size(place: Path) -> tuple[int, int] | None:
    """The image's own size; None when its pixels are not kept, or not whole."""
    with contextlib.suppress(OSError):
        with place.open("rb") as file:
            file.seek(-_END.size, os.SEEK_END)
            mark, height, width = _END.unpack(file.read())
        if mark == _MARK:
            return height, width
        place.unlink(missing_ok=True)
    return None


def _keep(place: Path, image: np.ndarray, size: tuple[int, int]) -> None:
    if image.dtype != np.uint8 or size[0] * size[1] <= image.shape[0] * image.shape[1]:
        return  # as quick to decode as to read
    temporary = place.with_suffix(f".{os.getpid()}")
    # a full disk makes the next epoch slower, which is no reason to end this one
    with contextlib.suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        try:
            with temporary.open("xb") as file:
                np.lib.format.write_array(file, image, allow_pickle=False)
                file.write(_END.pack(_MARK, *size))
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
