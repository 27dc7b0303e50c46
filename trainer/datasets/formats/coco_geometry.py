"""Convert boxes, polygons, run-length masks and keypoints of COCO from pixels to normalized coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.core.dataset import Task
from trainer.datasets.findings import Report
from trainer.datasets.images.dimensions import MAX_PIXELS

Points = list[tuple[float, float]]
MAX_PARTS = 50  # number of parts to join to the first part of an outline; the parts with the fewest points are omitted
SLACK = 2.0  # pixels; a box causes a warning if it reaches outside the image by more than this value


@dataclass(frozen=True)
class Picture:
    """The name of an image, and the size in pixels to which its annotations refer."""

    name: str
    width: int
    height: int


def row_of(
    annotation: Mapping[str, Any], picture: Picture, task: Task, kpt_shape: tuple[int, int] | None, report: Report
) -> list[float] | None:
    """Return the numbers of a YOLO row without the class. Return None for an unusable annotation, and report it."""
    polygon = _polygon(annotation.get("segmentation"), picture, report)
    if task in (Task.SEGMENT, Task.OBB) and polygon:
        points = _inside(polygon, picture)
        return [share for x, y in points for share in (x / picture.width, y / picture.height)]
    box = _box(annotation.get("bbox"), polygon)
    if box is None:
        report.add("coco_shape", picture.name)
        return None
    row = _box_row(box, picture, report)
    if task is Task.POSE and kpt_shape and row is not None:
        row += _keypoint_row(annotation.get("keypoints"), kpt_shape[0], picture, report)
    return row


def _numbers(value: Any) -> list[float] | None:
    if not isinstance(value, list) or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e9 and math.isfinite(n) for n in value
    ):
        return None
    return [float(n) for n in value]


def _box(value: Any, polygon: Points | None) -> tuple[float, float, float, float] | None:
    """Return left, top, right, bottom in pixels."""
    numbers = _numbers(value)
    if numbers is not None and len(numbers) == 4:
        x, y, width, height = numbers
        return x, y, x + width, y + height
    if polygon:
        xs, ys = zip(*polygon, strict=True)
        return min(xs), min(ys), max(xs), max(ys)
    return None


def _box_row(box: tuple[float, float, float, float], picture: Picture, report: Report) -> list[float] | None:
    left, top, right, bottom = box
    if min(left, top, picture.width - right, picture.height - bottom) < -SLACK:
        report.add("coco_outside", picture.name)
    left, right = (min(max(x, 0.0), picture.width) for x in (left, right))
    top, bottom = (min(max(y, 0.0), picture.height) for y in (top, bottom))
    return [
        (left + right) / 2 / picture.width,
        (top + bottom) / 2 / picture.height,
        (right - left) / picture.width,
        (bottom - top) / picture.height,
    ]


def _polygon(value: Any, picture: Picture, report: Report) -> Points | None:
    """Return one outline in pixels. If there are several parts, lines without width join them."""
    if isinstance(value, dict):
        parts = _mask_outlines(value, picture, report)
    elif isinstance(value, list):
        flat = [value] if value and not isinstance(value[0], list) else value
        lists = [numbers for part in flat if (numbers := _numbers(part)) and len(numbers) >= 6]
        parts = [list(zip(numbers[0::2], numbers[1::2], strict=False)) for numbers in lists]
    else:
        return None
    return _joined(parts) if parts else None


def _joined(parts: list[Points]) -> Points:
    """Join parts into one outline. A line connects the nearest points of two parts."""
    ring, *others = sorted(parts, key=len, reverse=True)
    for other in others[:MAX_PARTS]:
        # at most about 300 points of each outline are compared
        ours, theirs = range(0, len(ring), 1 + len(ring) // 300), range(0, len(other), 1 + len(other) // 300)
        i, j = min(((i, j) for i in ours for j in theirs), key=lambda pair: math.dist(ring[pair[0]], other[pair[1]]))
        ring = [*ring[: i + 1], *other[j:], *other[: j + 1], *ring[i:]]
    return ring


def _mask_outlines(rle: Mapping[str, Any], picture: Picture, report: Report) -> list[Points]:
    mask = _mask(rle, picture)
    if mask is None:
        report.add("coco_mask", picture.name)
        return []
    import cv2
    import numpy as np

    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rings = [np.asarray(outline, float).reshape(-1, 2) for outline in outlines]
    return [[(float(x), float(y)) for x, y in ring] for ring in rings if len(ring) >= 3]


def _mask(rle: Mapping[str, Any], picture: Picture) -> Any:
    """Return the mask (height, width) of 0 and 1, or None. The size is checked before memory is allocated."""
    import numpy as np

    pixels = picture.height * picture.width
    if rle.get("size") != [picture.height, picture.width] or pixels > MAX_PIXELS:
        return None
    runs = _runs(rle.get("counts"))
    if runs is None or sum(runs) != pixels:
        return None
    # runs of 0 and 1 alternate; the mask is stored column by column
    flat = np.repeat(np.arange(len(runs), dtype=np.uint32) % 2, runs).astype(np.uint8)
    return np.ascontiguousarray(flat.reshape((picture.height, picture.width), order="F"))


def _runs(counts: Any) -> list[int] | None:
    """Return the lengths of the runs, or None for invalid counts.

    pycocotools is not used, because its C code does not validate compressed strings.
    """
    if isinstance(counts, list):
        return counts if all(isinstance(n, int) and 0 <= n <= MAX_PIXELS for n in counts) else None
    if not isinstance(counts, str) or not counts.isascii():
        return None
    runs: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in counts):
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
        if runs[-1] < 0:
            return None
    return runs if not shift else None


def _keypoint_row(value: Any, count: int, picture: Picture, report: Report) -> list[float]:
    numbers = _numbers(value) if value is not None else [0.0] * (3 * count)
    if numbers is None or len(numbers) != 3 * count:
        report.add("coco_keypoints", picture.name, keypoints=count)
        return [0.0] * (3 * count)
    row: list[float] = []
    for x, y, visible in zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True):
        ((share_x, share_y),) = _inside([(x, y)], picture)
        row += [share_x / picture.width, share_y / picture.height, visible]
    return row


def _inside(points: Iterable[tuple[float, float]], picture: Picture) -> Points:
    return [(min(max(x, 0.0), float(picture.width)), min(max(y, 0.0), float(picture.height))) for x, y in points]
