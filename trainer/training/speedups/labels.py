"""Replaces Ultralytics' scan of labels with the table that the dataset check wrote (datasets/view/label_table.py).

The table has exactly the values that Ultralytics would read from each image and label file, or marks an image as
unknown. Before a table is used, Ultralytics scans a sample of its images. If one image differs, Ultralytics scans
all images.
"""

from __future__ import annotations

import functools
import itertools
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ultralytics.data.dataset import DATASET_CACHE_VERSION, YOLODataset
from ultralytics.utils.ops import xyxy2xywh

SAMPLES = 8  # images of each split that are scanned to verify the table
Label: TypeAlias = dict[str, Any]


def install() -> None:
    """Use the tables from now on. Call this function once, after the imports."""
    scan = YOLODataset._load_or_scan_cache  # noqa: SLF001 - the only place where a label cache is read

    @functools.wraps(scan)
    def load(self: Any, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        found = _from_table(self, cache_path.with_suffix(".npz"))
        return (found, True) if found else scan(self, cache_path, cache_hash)

    YOLODataset._load_or_scan_cache = load  # noqa: SLF001


def _from_table(dataset: Any, path: Path) -> dict[str, Any] | None:
    """Return the result that a scan would have, or None if the table is missing, damaged or wrong."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            table = _Table({name: arrays[name] for name in arrays.files})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    _, arguments = dataset.verify_args()
    items = list(arguments)
    known = [table.label(item[0], is_pose=dataset.use_keypoints, kpt_shape=(item[5], item[6])) for item in items]
    sampler = random.Random(0)  # noqa: S311 - the training's random numbers must not change
    listed = [index for index, label in enumerate(known) if label]
    for index in sampler.sample(listed, min(SAMPLES, len(listed))):
        if not _same(known[index], _scan(dataset, items[index])[0]):
            print(f"Label table does not match {items[index][0]}: scanning all images.", flush=True)  # noqa: T201 - the run's log
            return None
    return _as_scan_result(dataset, known, items)


def _as_scan_result(dataset: Any, known: list[Label | None], items: list[Any]) -> dict[str, Any]:
    labels, messages, counts = [], [], np.zeros(4, int)  # missing, found, empty, corrupt
    for found, item in zip(known, items, strict=True):
        label = found
        if label is None:
            label, *numbers, message = _scan(dataset, item)
            counts += numbers
            messages += [message] if message else []
        else:
            counts += (0, 1, not len(label["cls"]), 0)
        if label is not None:
            labels.append(label)
    missing, exist, empty, corrupt = counts.tolist()
    return {
        "labels": labels,
        "hash": "",
        "version": DATASET_CACHE_VERSION,
        "msgs": messages,
        "results": (exist, missing, empty, corrupt, len(items)),
    }


def _scan(dataset: Any, item: Any) -> Any:
    """Return the result of Ultralytics' scan of an image: a label or None, four counts and a message."""
    verify, _ = dataset.verify_args()
    return dataset.result_to_label(verify(item))


class _Table:
    def __init__(self, arrays: Mapping[str, Any]) -> None:
        names = arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\n")
        self._index = {name: index for index, name in enumerate(names)}
        self._shapes = arrays["shapes"].tolist()
        self._first_row = np.concatenate([[0], np.cumsum(arrays["counts"])]).tolist()
        self._starts = np.concatenate([[0], np.cumsum(arrays["cols"])])
        self._values = arrays["values"]
        self._widest = int(arrays["cols"].max(initial=0))
        self._boxes = self._boxes_of_polygons() if self._widest > 6 else None
        if not len(self._shapes) == len(names) == len(self._first_row) - 1 or self._starts[-1] != len(self._values):
            raise ValueError("the table is truncated")

    def label(self, image: str, *, is_pose: bool, kpt_shape: tuple[int, int]) -> Label | None:
        """Return the label of an image in the form of a scan, or None if the table does not have the image."""
        index = self._index.get(image.rpartition("/")[2])
        if index is None or not self._shapes[index][0]:
            return None
        first, last = self._first_row[index : index + 2]
        values = self._values[self._starts[first] : self._starts[last]]
        segments: list[Any] = []
        keypoints = None
        if is_pose:
            rows = values.reshape(last - first, 5 + kpt_shape[0] * kpt_shape[1])
            keypoints = _keypoints(rows[:, 5:].reshape(-1, *kpt_shape))
            rows = rows[:, :5]
        elif self._boxes is not None:
            rows = self._boxes[first:last]
            bounds = self._starts[first : last + 1].tolist()
            segments = [self._values[a + 1 : b].reshape(-1, 2) for a, b in itertools.pairwise(bounds)]
        else:
            rows = values.reshape(-1, 5)
        return {
            "im_file": image,
            "shape": tuple(self._shapes[index]),
            "cls": rows[:, 0:1],
            "bboxes": rows[:, 1:],
            "segments": segments,
            "keypoints": keypoints,
            "normalized": True,
            "bbox_format": "xywh",
        }

    def _boxes_of_polygons(self) -> Any:
        """Return the class and box of each row: (rows, 5)."""
        starts, is_class = self._starts[:-1], np.zeros(len(self._values), bool)
        is_class[starts] = True
        corners = self._values[~is_class].reshape(-1, 2)
        first = (starts - np.arange(len(starts))) // 2
        bounds = [np.minimum.reduceat(corners, first), np.maximum.reduceat(corners, first)]
        return np.concatenate([self._values[starts, None], xyxy2xywh(np.concatenate(bounds, 1))], 1)


def _keypoints(points: Any) -> Any:
    """Return the keypoints as (n, keypoints, 3). Without visibility values, points with coordinates ≥ 0 are visible."""
    if points.shape[-1] == 3:
        return points
    visible = np.where((points[..., 0] < 0) | (points[..., 1] < 0), 0.0, 1.0).astype(np.float32)
    return np.concatenate([points, visible[..., None]], axis=-1)


def _same(one: Label | None, other: Label | None) -> bool:
    return one is not None and other is not None and all(_equal(one[name], other[name]) for name in other)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    return bool(one == other)
