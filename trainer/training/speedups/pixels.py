"""Decodes and resizes each image once instead of once per epoch, and stores its pixels in the run's view.

Ultralytics' `load_image` returns the same bits and sizes from a stored file as from the image, and the training draws
the same random numbers. Classification loads its images elsewhere and is not affected. If a stored file is missing, the
image is decoded again.

    view/pixels/RECIPE/images/train/a.jpg.npy     RECIPE: imgsz-channels-fit, or imgsz-channels-stretch for RT-DETR

During the first epoch, additional processes with idle priority store pixels ahead of the training. Files that earlier
trainings stored for the same images can be linked into the view (datasets/cache/pixels.py). Before they are used, a
sample is compared with the images. If one file differs, all stored files are removed.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import random
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ultralytics.data.base import BaseDataset

FOLDER = "pixels"  # in the view
SAMPLES = 3  # images of each split that are decoded to verify linked files
_SHARE_OF_FREE = 4  # at most a quarter of the free space on the disk
# the end of a stored file, which numpy does not read: signature, height, width, modification time of the image
_TRAILER = struct.Struct("<4sIIq")
_SIGNATURE = b"PIX1"
Loaded: TypeAlias = tuple[np.ndarray, tuple[int, int], tuple[int, int]]


def install(most_bytes: int) -> None:
    """Store up to about `most_bytes` of pixels for each split. Call this function once, after the imports."""
    original, initialize = BaseDataset.load_image, BaseDataset.__init__

    @functools.wraps(original)
    def load_image(self: Any, i: int, rect_mode: bool = True, resize_short: bool = False) -> Loaded:
        path = None if self.ims[i] is not None or resize_short else _stored_file(self, i, rect_mode)
        size = _stored_size(path, self.im_files[i]) if path else None
        if path is None or size is None:
            loaded: Loaded = original(self, i, rect_mode, resize_short)
            if path:
                _store(path, self.im_files[i], loaded[0], loaded[1])
            return loaded
        # With cache "disk", Ultralytics reads the file and does not compare its modification time with the image. For
        # files from our cache, these times differ.
        (self.npy_files[i], plain), self.cache = (path, self.npy_files[i]), "disk"
        try:
            image, found, scaled = original(self, i, rect_mode, resize_short)
        finally:
            self.npy_files[i], self.cache = plain, None
        if found != scaled:  # the file was damaged, so Ultralytics decoded the image
            return image, found, scaled
        if self.im_hw0[i] is not None:  # the image is buffered for mosaics
            self.im_hw0[i] = size
        return image, size, scaled

    @functools.wraps(initialize)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it replaces a method of that name
        initialize(self, *args, **kwargs)
        # pixels are not stored if the row requests another cache
        if getattr(self, "data", {}).get("path") and not self.cache and isinstance(self.imgsz, int):
            limit = min(most_bytes, shutil.disk_usage(self.data["path"]).free // _SHARE_OF_FREE)
            self.stored_images = limit // (self.imgsz**2 * self.channels)
            _check_linked(self, original)

    BaseDataset.load_image = load_image
    BaseDataset.__init__ = __init__


def work_ahead(datasets: Sequence[Any], processes: int) -> None:
    """Start processes that store the pixels of these datasets, in this order, while the training runs."""
    ahead = [dataset for dataset in datasets if hasattr(dataset, "stored_images")]
    if not ahead or not _has_work(ahead):
        return
    for number in range(processes):
        process = multiprocessing.get_context("fork").Process(
            target=_work_ahead, args=(ahead, number, processes), name=f"pixels-{number}", daemon=True,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # the training works without these processes
            process.start()


def _work_ahead(datasets: Sequence[Any], number: int, processes: int) -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        return  # without idle priority, this process would slow down the training
    for dataset in datasets:
        dataset.augment = False  # without augmentation, no image is buffered
        order = list(range(number, min(len(dataset.labels), dataset.stored_images), processes))
        random.Random(number).shuffle(order)  # noqa: S311 - this does not change the order of the training
        for i in order:
            # the training reports images that cannot be loaded
            with contextlib.suppress(OSError, ValueError):
                if _is_large(dataset, i) and not _is_stored(dataset, i):
                    dataset.load_image(i)


def _has_work(datasets: Sequence[Any]) -> bool:
    """Return whether there is a large image of known size without stored pixels."""
    return any(
        "shape" in label and _is_large(dataset, i) and not _is_stored(dataset, i)
        for dataset in datasets
        for i, label in enumerate(dataset.labels)
    )


def _is_large(dataset: Any, i: int) -> bool:
    # a rectangular dataset (validation) no longer has shapes; its images count as large
    return bool(max(dataset.labels[i].get("shape", (dataset.imgsz + 1,))) > dataset.imgsz)


def _is_stored(dataset: Any, i: int) -> bool:
    return any(_file_of(dataset, i, rect_mode).exists() for rect_mode in (True, False))


def _check_linked(dataset: Any, load: Any) -> None:
    """Compare a sample of the linked files with the images. If one file differs, remove all stored files."""
    augment, dataset.augment = dataset.augment, False  # without augmentation, no image is buffered
    try:
        for i, rect_mode in _linked(dataset):
            image, size, _ = load(dataset, i, rect_mode)
            if not _matches(_file_of(dataset, i, rect_mode), dataset.im_files[i], image, size):
                print(f"Stored pixels do not match {dataset.im_files[i]}: removing all stored pixels.", flush=True)  # noqa: T201 - the run's log
                shutil.rmtree(Path(dataset.data["path"], FOLDER), ignore_errors=True)
                return
    finally:
        dataset.augment = augment


def _matches(path: Path, image: str, pixels: np.ndarray, size: tuple[int, int]) -> bool:
    with contextlib.suppress(OSError, EOFError, ValueError):
        return _stored_size(path, image) == size and np.array_equal(np.load(path, allow_pickle=False), pixels)
    return False


def _linked(dataset: Any) -> Iterator[tuple[int, bool]]:
    """Yield a sample of the images with a linked file, and whether the pixels are fitted (otherwise stretched)."""
    sampler = random.Random(0)  # noqa: S311 - the training's random numbers must not change
    for rect_mode in (True, False):
        folder = _file_of(dataset, 0, rect_mode).parent
        names = sorted(found.name for found in folder.glob("*.npy") if found.stat().st_nlink > 1)
        if names:
            numbers = {_file_of(dataset, i, rect_mode).name: i for i in range(dataset.ni)}
            known = [name for name in names if name in numbers]
            yield from ((numbers[name], rect_mode) for name in sampler.sample(known, min(SAMPLES, len(known))))


def _file_of(dataset: Any, i: int, rect_mode: bool) -> Path:
    view = str(dataset.data["path"])
    recipe = f"{dataset.imgsz}-{dataset.channels}-{'fit' if rect_mode else 'stretch'}"
    return Path(f"{view}/{FOLDER}/{recipe}/{dataset.im_files[i].removeprefix(view).lstrip('/')}.npy")


def _stored_file(dataset: Any, i: int, rect_mode: bool) -> Path | None:
    """Return the file for the pixels of image i, or None if they must not be stored."""
    if i >= getattr(dataset, "stored_images", 0) or not dataset.im_files[i].startswith(f"{dataset.data['path']}/"):
        return None
    return _file_of(dataset, i, rect_mode)


def _stored_size(path: Path, image: str) -> tuple[int, int] | None:
    """Return the image's original size, or None if the stored file is missing, incomplete or of another image.

    A file of another image is removed.
    """
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            file.seek(-_TRAILER.size, os.SEEK_END)
            signature, height, width, changed = _TRAILER.unpack(file.read())
        if (signature, changed) == (_SIGNATURE, Path(image).stat().st_mtime_ns):
            return height, width
        path.unlink(missing_ok=True)
    return None


def _store(path: Path, image: str, pixels: np.ndarray, size: tuple[int, int]) -> None:
    if pixels.dtype != np.uint8 or size[0] * size[1] <= pixels.shape[0] * pixels.shape[1]:
        return  # the image is not scaled down: decoding is as fast as reading the stored file
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    # if the disk is full, the next epoch is slower, but the training continues
    with contextlib.suppress(OSError):
        changed = Path(image).stat().st_mtime_ns
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                np.lib.format.write_array(file, pixels, allow_pickle=False)
                file.write(_TRAILER.pack(_SIGNATURE, *size, changed))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
