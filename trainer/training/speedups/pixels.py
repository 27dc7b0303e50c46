"""An image is decoded and scaled down once, not once in every epoch: the pixels are kept in the run's view.

What Ultralytics' `load_image` returned the first time is what it finds the next time, with the size that the image had
before, so a training gets the same bits and its random numbers are drawn in the same order. Classification reads its
images elsewhere and stays as it is. Losing a kept file costs time and nothing else.

    view/pixels/RECIPE/images/train/a.jpg.npy     RECIPE: imgsz-channels-fit, or -stretch as RT-DETR does

During the first epoch processes of their own, which get only idle processors, work ahead of the training. What earlier
trainings kept of the same images may be there already, linked (datasets/kept_pixels.py): before that is believed some
of it is compared with the image, and one difference throws all of it away.
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
SAMPLES = 3  # images of each split that are decoded to see whether what is linked is right
_SHARE_OF_FREE = 4  # at most a quarter of what is free on the disk
# behind the array, where numpy does not look: a mark, the image's height and width, and the time at which it was changed
_END = struct.Struct("<4sIIq")
_MARK = b"PIX1"
Loaded: TypeAlias = tuple[np.ndarray, tuple[int, int], tuple[int, int]]


def install(most_bytes: int) -> None:
    """Keep pixels of up to about `most_bytes` for each split from now on. Call it once, after imports."""
    original, begin = BaseDataset.load_image, BaseDataset.__init__

    @functools.wraps(original)
    def load_image(self: Any, i: int, rect_mode: bool = True, resize_short: bool = False) -> Loaded:
        place = None if self.ims[i] is not None or resize_short else _place(self, i, rect_mode)
        size = _kept_size(place, self.im_files[i]) if place else None
        if place is None or size is None:
            loaded: Loaded = original(self, i, rect_mode, resize_short)
            if place:
                _keep(place, self.im_files[i], loaded[0], loaded[1])
            return loaded
        # Ultralytics reads this file instead of the image; without a cache it would compare their ages, but what comes
        # from our own cache has a time that means something else
        (self.npy_files[i], plain), self.cache = (place, self.npy_files[i]), "disk"
        try:
            image, found, scaled = original(self, i, rect_mode, resize_short)
        finally:
            self.npy_files[i], self.cache = plain, None
        if found != scaled:  # it was damaged, and the image decoded
            return image, found, scaled
        if self.im_hw0[i] is not None:  # buffered for mosaics
            self.im_hw0[i] = size
        return image, size, scaled

    @functools.wraps(begin)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes the place of one
        begin(self, *args, **kwargs)
        if _is_kept(self):
            room = min(most_bytes, shutil.disk_usage(self.data["path"]).free // _SHARE_OF_FREE)
            self.kept_images = room // (self.imgsz**2 * self.channels)
            _check_linked(self, original)

    BaseDataset.load_image = load_image
    BaseDataset.__init__ = __init__


def work_ahead(datasets: Sequence[Any], processes: int) -> None:
    """Keep the pixels of these datasets beside the training, which goes on meanwhile; those needed first, first."""
    ahead = [dataset for dataset in datasets if hasattr(dataset, "kept_images")]
    if not ahead or not _is_worth_it(ahead):
        return
    for number in range(processes):
        process = multiprocessing.get_context("fork").Process(
            target=_work_ahead, args=(ahead, number, processes), name=f"pixels-{number}", daemon=True,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # a host without room for another process trains all the same
            process.start()


def _work_ahead(datasets: Sequence[Any], number: int, processes: int) -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        return  # it would take processors from the training
    for dataset in datasets:
        dataset.augment = False  # nothing is buffered here
        order = list(range(number, min(len(dataset.labels), dataset.kept_images), processes))
        random.Random(number).shuffle(order)  # noqa: S311 - the training draws its own order
        for i in order:
            # what cannot be loaded is for the training to say
            with contextlib.suppress(OSError, ValueError):
                if _is_large(dataset, i) and not _is_there(dataset, i):
                    dataset.load_image(i)


def _is_worth_it(datasets: Sequence[Any]) -> bool:
    """Whether there is anything left to scale down, as far as sizes are known."""
    return any(
        "shape" in label and _is_large(dataset, i) and not _is_there(dataset, i)
        for dataset in datasets
        for i, label in enumerate(dataset.labels)
    )


def _is_large(dataset: Any, i: int) -> bool:
    # a rectangular dataset, as that of the validation, has forgotten
    return bool(max(dataset.labels[i].get("shape", (dataset.imgsz + 1,))) > dataset.imgsz)


def _is_there(dataset: Any, i: int) -> bool:
    return any(_named(dataset, i, rect_mode).exists() for rect_mode in (True, False))


def _check_linked(dataset: Any, load: Any) -> None:
    """Compare some of what earlier trainings kept with what is loaded from the image."""
    augment, dataset.augment = dataset.augment, False  # nothing is buffered yet
    try:
        for i, rect_mode in _linked(dataset):
            image, size, _ = load(dataset, i, rect_mode)
            if not _is_right(_named(dataset, i, rect_mode), dataset.im_files[i], image, size):
                print(f"The kept pixels of {dataset.im_files[i]} are not its own; none are used.", flush=True)  # noqa: T201 - the log
                shutil.rmtree(Path(dataset.data["path"], FOLDER), ignore_errors=True)
                return
    finally:
        dataset.augment = augment


def _is_right(place: Path, image: str, pixels: np.ndarray, size: tuple[int, int]) -> bool:
    with contextlib.suppress(OSError, EOFError, ValueError):
        return _kept_size(place, image) == size and np.array_equal(np.load(place, allow_pickle=False), pixels)
    return False


def _linked(dataset: Any) -> Iterator[tuple[int, bool]]:
    """Some of the images whose pixels are links, and whether they are fitted rather than stretched."""
    dice = random.Random(0)  # noqa: S311 - the training's own dice must not be touched
    for rect_mode in (True, False):
        folder = _named(dataset, 0, rect_mode).parent
        names = sorted(path.name for path in folder.glob("*.npy") if path.stat().st_nlink > 1)
        if names:
            numbers = {_named(dataset, i, rect_mode).name: i for i in range(dataset.ni)}
            known = [name for name in names if name in numbers]
            yield from ((numbers[name], rect_mode) for name in dice.sample(known, min(SAMPLES, len(known))))


def _is_kept(dataset: Any) -> bool:
    """Whether anything of the dataset is kept: not where the row asked for another cache."""
    return bool(getattr(dataset, "data", {}).get("path")) and not dataset.cache and isinstance(dataset.imgsz, int)


def _named(dataset: Any, i: int, rect_mode: bool) -> Path:
    view = str(dataset.data["path"])
    recipe = f"{dataset.imgsz}-{dataset.channels}-{'fit' if rect_mode else 'stretch'}"
    return Path(f"{view}/{FOLDER}/{recipe}/{dataset.im_files[i].removeprefix(view).lstrip('/')}.npy")


def _place(dataset: Any, i: int, rect_mode: bool) -> Path | None:
    """Where the pixels of image i are kept; None: nowhere."""
    is_ours = dataset.im_files[i].startswith(f"{dataset.data['path']}/") if hasattr(dataset, "kept_images") else False
    return _named(dataset, i, rect_mode) if is_ours and i < dataset.kept_images else None


def _kept_size(place: Path, image: str) -> tuple[int, int] | None:
    """The image's own size; None when its pixels are not kept, or not whole, or not those that it has now."""
    with contextlib.suppress(OSError):
        with place.open("rb") as file:
            file.seek(-_END.size, os.SEEK_END)
            mark, height, width, changed = _END.unpack(file.read())
        if (mark, changed) == (_MARK, Path(image).stat().st_mtime_ns):
            return height, width
        place.unlink(missing_ok=True)
    return None


def _keep(place: Path, image: str, pixels: np.ndarray, size: tuple[int, int]) -> None:
    if pixels.dtype != np.uint8 or size[0] * size[1] <= pixels.shape[0] * pixels.shape[1]:
        return  # as quick to decode as to read
    temporary = place.with_name(f".{os.getpid()}.{place.name}")
    # a full disk makes the next epoch slower, which is no reason to end this one
    with contextlib.suppress(OSError):
        changed = Path(image).stat().st_mtime_ns
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                np.lib.format.write_array(file, pixels, allow_pickle=False)
                file.write(_END.pack(_MARK, *size, changed))
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
