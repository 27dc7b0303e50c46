"""Write the labels of a view as arrays too. The training reads the arrays, not the label files and image headers.

labels/{train,val,test}.npz, beside the folders of label files, has these arrays for the n images of the split:

names   the images' file names, separated by newlines       shapes  (n, 2) height and width; 0 0: unknown
counts  (n,) rows per image                                 cols    (rows,) numbers per row
values  (sum of cols,) float32, the numbers of all rows, as Ultralytics would read them
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.datasets.checks.statistics import split_numbers
from trainer.datasets.labels.check import LabelRows
from trainer.datasets.labels.parse import starts
from trainer.datasets.samples import SPLITS, Sample
from trainer.datasets.view.links import view_errors


def write_label_tables(view: Path, samples: Sequence[Sample], rows: LabelRows) -> None:
    """Write the table of each split. Raises `MachineFailed` for errors of the disk."""
    split_of = split_numbers(samples)
    counts = np.bincount(rows.image, minlength=len(samples))
    values = rows.values.astype(np.float32)
    shapes = np.array([sample.facts.shape or (0, 0) for sample in samples], np.int32).reshape(-1, 2)
    shapes[_special(rows, values)] = 0
    for number, split in enumerate(SPLITS):
        images = np.flatnonzero(split_of == number)
        is_in_split = split_of[rows.image] == number
        if not len(images):
            continue
        names = "\n".join(samples[image].place.rpartition("/")[2] for image in images.tolist())
        with view_errors():
            np.savez(
                view / "labels" / f"{split}.npz",
                names=np.frombuffer(names.encode("utf-8", "surrogateescape"), np.uint8),
                shapes=shapes[images],
                counts=counts[images].astype(np.int32),
                cols=rows.cols[is_in_split].astype(np.int32),
                values=values[np.repeat(is_in_split, rows.cols)],
            )


def _special(rows: LabelRows, values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the images with rows that Ultralytics would change: equal rows or negative numbers, in float32."""
    if not len(rows.cols):
        return rows.image
    first = starts(rows.cols)
    negative = rows.image[np.minimum.reduceat(values, first) < 0]
    # only two numbers of each row are compared, so the result can contain a few other images
    x, y = ((values[first + place] + np.float32(0)).view(np.uint32).astype(np.uint64) for place in (1, 2))
    heads = rows.image.astype(np.uint64) << np.uint64(32) | (x * np.uint64(2654435761) ^ y) & np.uint64(0xFFFFFFFF)
    _, place, count = np.unique(heads, return_index=True, return_counts=True)
    return np.concatenate([negative, rows.image[place[count > 1]]])
