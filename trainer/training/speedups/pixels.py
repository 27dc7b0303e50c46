"""Decodes and resizes each image once instead of once per epoch, and stores its pixels in the run's view.

Ultralytics' `load_image` returns the same bits and sizes from a stored file as from the image, and the training draws
the same random numbers. Classification loads its images elsewhere and is not affected. If a stored file is missing, the
image is decoded again.

    view/pixels/RECIPE/images/train/a.jpg.npy     (core/stored_pixels.py)

During the first epoch, additional processes with idle priority store pixels ahead of the training. Pixels of earlier
trainings on the same images can be in the folder `pixels` beside the view (datasets/cache/pixels.py). The code of an
earlier training could have forged them. So before they are used, a random sample is compared with the images. If one file
differs, none of them is used.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ultralytics.data.base import BaseDataset

from trainer.core.stored_pixels import FOLDER, TRAILER_BYTES, ImageVersion, recipe, size_in, trailer

SAMPLES = 3  # images of each split that are always decoded to verify the pixels of earlier trainings
MOST_SAMPLES = 32  # at most this many are decoded within SAMPLE_SECONDS
SAMPLE_SECONDS = 0.3
_SHARE_OF_FREE = 4  # at most a quarter of the free space on the disk
_REFUSED = "refused"  # a file in the view's folder of pixels: the pixels of earlier trainings are not used
Loaded: TypeAlias = tuple[np.ndarray, tuple[int, int], tuple[int, int]]


def install(most_bytes: int) -> None:
    """Store up to about `most_bytes` of pixels for each split. Call this function once, after the imports."""
    original, initialize = BaseDataset.load_image, BaseDataset.__init__

    @functools.wraps(original)
    def load_image(self: Any, i: int, rect_mode: bool = True, resize_short: bool = False) -> Loaded:
        own = None if self.ims[i] is not None or resize_short else _stored_file(self, i, rect_mode)
        for path in _usable_files(self, own):
            size = _stored_size(path, self.im_files[i])
            if size and (stored := _load_stored(self, i, rect_mode, original, path, size)):
                return stored
        loaded: Loaded = original(self, i, rect_mode, resize_short)
        if own:
            _store(own, self.im_files[i], loaded[0], loaded[1])
        return loaded

    @functools.wraps(initialize)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it replaces a method of that name
        initialize(self, *args, **kwargs)
        # pixels are not stored if the row requests another cache
        if getattr(self, "data", {}).get("path") and not self.cache and isinstance(self.imgsz, int):
            limit = min(most_bytes, shutil.disk_usage(self.data["path"]).free // _SHARE_OF_FREE)
            self.stored_images = limit // (self.imgsz**2 * self.channels)
            _check_kept(self, original)

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
    own = (_file_of(dataset, i, rect_mode) for rect_mode in (True, False))
    return any(path.exists() for file in own for path in _usable_files(dataset, file))


def _usable_files(dataset: Any, own: Path | None) -> list[Path]:
    """Return the paths of the stored pixels of an image: of an earlier training, if they are trusted, and of this one."""
    if own is None:
        return []
    view = Path(dataset.data["path"])
    if not getattr(dataset, "has_kept_pixels", False) or (view / FOLDER / _REFUSED).exists():
        return [own]
    return [view.parent / own.relative_to(view), own]


def _check_kept(dataset: Any, load: Any) -> None:
    """Compare a random sample of the pixels of earlier trainings with the images. If one file differs, refuse all."""
    view = Path(dataset.data["path"])
    dataset.has_kept_pixels = (view.parent / FOLDER).is_dir()
    augment, dataset.augment = dataset.augment, False  # without augmentation, no image is buffered
    try:
        for i, rect_mode in _kept_sample(dataset):
            image, size, _ = load(dataset, i, rect_mode)
            if not _matches(
                view.parent / _file_of(dataset, i, rect_mode).relative_to(view), dataset.im_files[i], image, size
            ):
                print(f"Stored pixels do not match {dataset.im_files[i]}: decoding all images.", flush=True)  # noqa: T201 - the run's log
                dataset.has_kept_pixels = False
                with contextlib.suppress(OSError):  # without this file, the other splits are checked on their own
                    (view / FOLDER).mkdir(exist_ok=True)
                    (view / FOLDER / _REFUSED).touch()
                return
    finally:
        dataset.augment = augment


def _matches(path: Path, image: str, pixels: np.ndarray, size: tuple[int, int]) -> bool:
    with contextlib.suppress(OSError, EOFError, ValueError):
        return _stored_size(path, image) == size and np.array_equal(np.load(path, allow_pickle=False), pixels)
    return False


def _kept_sample(dataset: Any) -> Iterator[tuple[int, bool]]:
    """Yield a sample of the images with pixels of an earlier training, and whether the pixels are fitted or stretched.

    No earlier training can predict the sample, and the random numbers of this training do not change.
    """
    view = Path(dataset.data["path"])
    for rect_mode in (True, False):
        folder = view.parent / _file_of(dataset, 0, rect_mode).parent.relative_to(view)
        names = {found.name for found in folder.glob("*.npy")}
        if not names:
            continue
        known = [i for i in range(dataset.ni) if _file_of(dataset, i, rect_mode).name in names]
        began = time.monotonic()
        for number, i in enumerate(random.SystemRandom().sample(known, min(MOST_SAMPLES, len(known)))):
            if number >= SAMPLES and time.monotonic() - began > SAMPLE_SECONDS:
                break
            yield i, rect_mode


def _file_of(dataset: Any, i: int, rect_mode: bool) -> Path:
    view = str(dataset.data["path"])
    name = recipe(dataset.imgsz, dataset.channels, "fit" if rect_mode else "stretch")
    return Path(f"{view}/{FOLDER}/{name}/{dataset.im_files[i].removeprefix(view).lstrip('/')}.npy")


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
            file.seek(-TRAILER_BYTES, os.SEEK_END)
            size = size_in(file.read(), ImageVersion.of(Path(image).stat()))
        if size is None:
            path.unlink(missing_ok=True)
        return size
    return None


def _load_stored(dataset: Any, i: int, rect_mode: bool, load: Any, path: Path, size: tuple[int, int]) -> Loaded | None:
    """Return the image from its stored pixels, or None if the file is damaged and cannot be removed."""
    # With cache "disk", Ultralytics reads the file and does not compare its modification time with the image. For
    # files from our cache, these times differ.
    (dataset.npy_files[i], plain), dataset.cache = (path, dataset.npy_files[i]), "disk"
    try:
        image, found, scaled = load(dataset, i, rect_mode)
    except PermissionError:
        return None
    finally:
        dataset.npy_files[i], dataset.cache = plain, None
    if found != scaled:  # the file was damaged, so Ultralytics removed it and decoded the image
        return image, found, scaled
    if dataset.im_hw0[i] is not None:  # the image is buffered for mosaics
        dataset.im_hw0[i] = size
    return image, size, scaled


def _store(path: Path, image: str, pixels: np.ndarray, size: tuple[int, int]) -> None:
    if pixels.dtype != np.uint8 or size[0] * size[1] <= pixels.shape[0] * pixels.shape[1]:
        return  # the image is not scaled down: decoding is as fast as reading the stored file
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    # if the disk is full, the next epoch is slower, but the training continues
    with contextlib.suppress(OSError):
        version = ImageVersion.of(Path(image).stat())
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                np.lib.format.write_array(file, pixels, allow_pickle=False)
                file.write(trailer(size, version))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
