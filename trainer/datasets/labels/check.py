"""Check the labels of many images together. Only labels that must change are rewritten.

A row is a class number and the coordinates of a shape. A box has 4 numbers (center x, center y, width, height), a
polygon has 2 numbers per corner. An oriented box is a polygon with 4 corners. A pose is a box and its keypoints.
Coordinates are normalized: 0 to 1, relative to the width or height of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.core.dataset import Task
from trainer.core.stop import StopSignal
from trainer.datasets.findings import MAX_EXAMPLES, Report
from trainer.datasets.labels.convert import Shape, rewritten
from trainer.datasets.labels.parse import Rows, chunks, flat, parse, repeated

MAX_LABEL_BYTES = 16 << 20  # bytes; about 1,800 polygons of 500 corners with 6 decimals
ROUNDING = 0.01  # a coordinate outside 0…1 by at most this value is a rounding error
PIXELS = 2.0  # a coordinate above this value is in pixels, not normalized


class LabelRows(NamedTuple):
    """The rows of all label texts as numbers, in order.

    Row r belongs to text `image[r]`, has class `cls[r]` and `cols[r]` numbers; `values` holds the numbers of all rows.
    """

    image: NDArray[np.int64] = np.zeros(0, np.int64)
    cls: NDArray[np.int64] = np.zeros(0, np.int64)
    cols: NDArray[np.int64] = np.zeros(0, np.int64)
    values: NDArray[np.float64] = np.zeros(0)


class Labels(NamedTuple):
    """Checked labels: the texts for the view, and their rows."""

    texts: list[bytes]
    rows: LabelRows = LabelRows()

    @staticmethod
    def joined(parts: Sequence[Labels]) -> Labels:
        """Return the labels of all parts, one after the other."""
        first = np.cumsum([0, *(len(part.texts) for part in parts)])
        moved = [part.rows._replace(image=part.rows.image + begin) for part, begin in zip(parts, first, strict=False)]
        rows = LabelRows(*map(np.concatenate, zip(*moved, strict=True)))
        return Labels([text for part in parts for text in part.texts], rows)


def check(texts: Sequence[bytes], names: Sequence[str], shape: Shape, report: Report, stop: StopSignal) -> Labels:
    """Check label texts and convert them to `shape`. `names[i]` is the name of text i in messages.

    Errors and changes go into `report`; after an error the result is incomplete.
    """
    parts = []
    for part in chunks(texts):
        stop.raise_if_set()
        parts.append(_Checker(list(texts[part]), names[part], shape, report).labels())
    return Labels.joined(parts)


@dataclass
class _Checker:
    texts: list[bytes]
    names: Sequence[str]
    shape: Shape
    report: Report

    def labels(self) -> Labels:
        rows, dirty = parse(self.texts, self.names, self.report)
        for file in np.flatnonzero(dirty).tolist():
            self.report.add("label_separators", self.names[file])
        if not len(rows.cols):
            return Labels(self.texts)
        cls, good = self._classes(rows)
        good &= self._shapes(rows)
        good &= self._ranges(rows)
        dirty[rows.file[self._must_change(rows, cls)]] = True
        is_rewritten = False
        for file in np.flatnonzero(dirty).tolist():
            first, last = np.searchsorted(rows.file, [file, file + 1])
            if good[first:last].all():
                is_rewritten = True
                values = [rows.values[rows.start[r] : rows.start[r] + rows.cols[r]] for r in range(first, last)]
                self.texts[file] = rewritten(values, cls[first:last].tolist(), self.shape, self._changed(file))
        if is_rewritten and good.all():
            rows, _ = parse(self.texts, self.names, self.report)
            cls, good = rows.values[rows.start].astype(np.int64), np.ones(len(rows.cols), bool)
        numbers = rows.values[np.repeat(good, rows.cols)]
        return Labels(self.texts, LabelRows(rows.file[good], cls[good], rows.cols[good], numbers))

    def _classes(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        classes = self.shape.classes
        raw = rows.values[rows.start]
        with np.errstate(invalid="ignore"):
            whole = np.isfinite(raw) & (raw == np.floor(raw)) & (np.abs(raw) < 1e9)
        numbers = np.where(whole, raw, -1).astype(np.int64)
        kinds, inverse = np.unique(numbers, return_inverse=True)
        cls = np.array([classes.get(int(kind), -1) for kind in kinds], np.int64)[inverse]
        good: NDArray[np.bool_] = whole & (cls >= 0)
        self._report_rows(rows, ~whole, "class_not_whole")
        low, high = min(classes, default=0), max(classes, default=0)
        self._report_rows(
            rows,
            whole & ~good,
            "class_outside",
            lambda row: f": class {numbers[row]}",
            classes=len(classes),
            low=low,
            high=high,
        )
        return cls, good

    def _shapes(self, rows: Rows) -> NDArray[np.bool_]:
        task, cols = self.shape.task, rows.cols
        box, polygon = cols == 5, (cols >= 7) & (cols % 2 == 1)
        if task is Task.POSE:
            keypoints = self.shape.keypoints or (0, 0)
            good: NDArray[np.bool_] = cols == self.shape.pose_columns
            rule = (
                f"a pose row has {self.shape.pose_columns} numbers: class, box and {keypoints[0]} keypoints "
                f"with {keypoints[1]} numbers each (kpt_shape)"
            )
        else:
            good = box | polygon
            rule = "a row is a class and 4 numbers (box), or a class and 2 numbers for each corner (polygon)"

        def columns(row: int) -> str:
            return f": {cols[row]} columns" + (" (is the last number a confidence?)" if cols[row] == 6 else "")

        self._report_rows(rows, ~good, "label_columns", columns, rule=rule)
        if task in (Task.DETECT, Task.SEGMENT) and box.any() and polygon.any():
            self.report.add("label_mixed", count=int(np.count_nonzero(polygon)))
        return good

    def _ranges(self, rows: Rows) -> NDArray[np.bool_]:
        coords = self._coordinates(rows)
        finite = np.logical_and.reduceat(np.isfinite(coords), rows.start)
        low, high = np.minimum.reduceat(coords, rows.start), np.maximum.reduceat(coords, rows.start)
        with np.errstate(invalid="ignore"):
            pixels = finite & (high > PIXELS)
            outside = finite & ~pixels & ((low < -ROUNDING) | (high > 1 + ROUNDING))
        self._report_rows(rows, ~finite, "label_nan")
        self._report_rows(rows, pixels, "label_pixels")
        self._report_rows(rows, outside, "label_outside")
        good: NDArray[np.bool_] = finite & ~pixels & ~outside
        return good

    def _coordinates(self, rows: Rows) -> NDArray[np.float64]:
        """Return the values with 0.5 in place of class numbers and visibilities, which are not coordinates."""
        coords = rows.values.copy()
        coords[rows.start] = 0.5
        if self.shape.task is Task.POSE and self.shape.keypoints and self.shape.keypoints[1] == 3:
            place = np.arange(len(coords)) - np.repeat(rows.start, rows.cols)
            coords[(place >= 5) & ((place - 5) % 3 == 2)] = 0.5
        return coords

    def _must_change(self, rows: Rows, cls: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask of rows to change: outside the image, degenerate, duplicate, renumbered or of another shape."""
        coords = self._coordinates(rows)
        change = (np.minimum.reduceat(coords, rows.start) < 0) | (np.maximum.reduceat(coords, rows.start) > 1)
        change |= rows.values[rows.start] != cls
        box = rows.cols == 5
        task = self.shape.task
        if task in (Task.DETECT, Task.POSE):
            wide = np.minimum(rows.start + 3, len(rows.values) - 1)
            high = np.minimum(rows.start + 4, len(rows.values) - 1)
            change |= (rows.values[wide] <= 0) | (rows.values[high] <= 0)
        change |= {Task.DETECT: ~box, Task.SEGMENT: box, Task.OBB: rows.cols != 9}.get(task, np.zeros(len(box), bool))
        if task in (Task.SEGMENT, Task.OBB):
            change |= ~box & flat(rows)
        return change | repeated(rows)

    def _changed(self, file: int) -> Callable[[str], None]:
        return lambda change: self.report.add(f"label_{change}", self.names[file])

    def _report_rows(
        self,
        rows: Rows,
        wrong: NDArray[np.bool_],
        code: str,
        detail: Callable[[int], str] = lambda _: "",
        **values: Any,
    ) -> None:
        where = np.flatnonzero(wrong)
        for row in where[:MAX_EXAMPLES].tolist():
            self.report.add(code, f"{self.names[rows.file[row]]} line {rows.line[row]}{detail(row)}", **values)
        if len(where) > MAX_EXAMPLES:
            self.report.add(code, count=len(where) - MAX_EXAMPLES, **values)
