"""What Ultralytics' results.csv says: the numbers of each epoch, read back where they were not told in time."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.core.events import EpochFinished
from trainer.core.plan import TrainPlan


def epochs_after(epoch: int, results: str, plan: TrainPlan) -> Iterator[EpochFinished]:
    """Yield what was to be told of the epochs after `epoch` when they were finished. `results` is the table's text.

    Raises ValueError for a number that is none.
    """
    told = ("train/", "val/", "metrics/", "lr/") if plan.args.get("val", True) else ("train/", "lr/")
    ended = 0.0
    for number, time, row in rows(results):
        began, ended = ended, time
        if number > epoch:
            metrics = numbers({name: value for name, value in row.items() if name.startswith(told)})
            seconds = round(ended - began, 3)
            yield EpochFinished(epoch=number, total_epochs=plan.epochs, metrics=metrics, seconds=seconds)


def rows(results: str) -> Iterator[tuple[int, float, dict[str, str]]]:
    """Yield the whole rows of the table, each with its epoch and its time in seconds."""
    for row in csv.DictReader(results.replace("\0", "").splitlines()):
        if None in row or not all(row.values()):
            continue  # cut by a full disk, with the next one behind it on the same line or not
        try:
            epoch, time = int(float(row["epoch"])), float(row["time"])
        except (KeyError, ValueError, OverflowError):
            continue  # likewise, or the header was cut
        yield epoch, time, row


def numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the values as finite floats of six digits, as in results.csv; the others are left out."""
    floats = {key: float(f"{float(value):.6g}") for key, value in (values or {}).items()}
    return {key: value for key, value in floats.items() if math.isfinite(value)}
