"""Convert label rows to the shape of a task: convert and clip boxes and polygons, and remove duplicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trainer.core.dataset import Task

Row: TypeAlias = NDArray[np.float64]

CHANGES = (
    "separators",
    "clipped",
    "duplicate",
    "degenerate",
    "renumbered",
    "box_to_polygon",
    "polygon_to_box",
    "polygon_to_obb",
    "box_to_obb",
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The required shape of rows. `classes` maps the number in a label file to the class index."""

    task: Task
    classes: Mapping[int, int]
    keypoints: tuple[int, int] | None = None

    @property
    def pose_columns(self) -> int:
        return 5 + self.keypoints[0] * self.keypoints[1] if self.keypoints else 0


def rewritten(rows: list[Row], classes: list[int], shape: Shape, changed: Callable[[str], None]) -> bytes:
    """Return the converted text of one label file.

    `rows[i]` starts with its class number in the file; `classes[i]` is its class index. `changed` is called with the kind
    of each change, an item of CHANGES.
    """
    lines: dict[str, None] = {}
    for row, cls in zip(rows, classes, strict=True):
        if row[0] != cls:
            changed("renumbered")
        coords = _fitted(_clipped(row[1:], shape, changed), shape, changed)
        line = "" if coords is None else " ".join([str(cls), *map(repr, coords.tolist())])
        if line in lines:
            changed("duplicate")
        elif line:
            lines[line] = None
    return "".join(f"{line}\n" for line in lines).encode()


def _clipped(coords: Row, shape: Shape, changed: Callable[[str], None]) -> Row:
    places = np.ones(len(coords), bool)
    if shape.task is Task.POSE and shape.keypoints and shape.keypoints[1] == 3:
        places[6::3] = False  # visibility
    clipped: Row = np.where(places, np.clip(coords, 0.0, 1.0), coords)
    if not np.array_equal(clipped, coords):
        changed("clipped")
    return clipped


def _fitted(coords: Row, shape: Shape, changed: Callable[[str], None]) -> Row | None:
    """Return the coordinates in the shape of the task, or None for a row without width or height."""
    is_box = len(coords) == 4 or shape.task is Task.POSE
    box = coords if is_box else _to_box(coords)
    if min(box[2:4]) <= 0:
        changed("degenerate")
        return None
    if shape.task is Task.POSE or is_box is (shape.task is Task.DETECT):
        return _four_corners(coords, changed) if shape.task is Task.OBB else coords
    if shape.task is Task.DETECT:
        changed("polygon_to_box")
        return box
    changed("box_to_polygon" if shape.task is Task.SEGMENT else "box_to_obb")
    return _to_corners(coords)


def _to_box(corners: Row) -> Row:
    (left, top), (right, bottom) = corners.reshape(-1, 2).min(axis=0), corners.reshape(-1, 2).max(axis=0)
    return np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])


def _to_corners(box: Row) -> Row:
    x, y, width, height = box
    left, top = max(x - width / 2, 0.0), max(y - height / 2, 0.0)
    right, bottom = min(x + width / 2, 1.0), min(y + height / 2, 1.0)
    return np.array([left, top, right, top, right, bottom, left, bottom])


def _four_corners(corners: Row, changed: Callable[[str], None]) -> Row:
    """Return the smallest rectangle that encloses a polygon and is parallel to one of its edges.

    A polygon with four corners is not changed.
    """
    if len(corners) == 8:
        return corners
    changed("polygon_to_obb")
    points = corners.reshape(-1, 2)
    edges = np.diff(np.vstack([points, points[:1]]), axis=0)
    best, best_area = corners, np.inf
    for angle in np.unique(np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned = points @ turn
        (left, top), (right, bottom) = turned.min(axis=0), turned.max(axis=0)
        if (right - left) * (bottom - top) < best_area:
            best_area = (right - left) * (bottom - top)
            best = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) @ turn.T
    return np.clip(best.ravel(), 0.0, 1.0)
