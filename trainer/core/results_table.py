"""Reads the metrics of each epoch from results.csv, including epochs that were not reported before a crash."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.core.events import EpochFinished
from trainer.core.plan import TrainPlan


def epochs_after(epoch: int, results: str, plan: TrainPlan) -> Iterator[EpochFinished]:
    """Yield the events of the epochs after `epoch`. `results` is the text of the table.

    Raises ValueError for a value that is not a number.
    """
    reported = ("train/", "val/", "metrics/", "lr/") if plan.args.get("val", True) else ("train/", "lr/")
    ended = 0.0
    for number, time, row in rows(results):
        began, ended = ended, time
        if number > epoch:
            metrics = numbers({name: value for name, value in row.items() if name.startswith(reported)})
            seconds = round(ended - began, 3)
            yield EpochFinished(epoch=number, total_epochs=plan.epochs, metrics=metrics, seconds=seconds)


def rows(results: str) -> Iterator[tuple[int, float, dict[str, str]]]:
    """Yield the complete rows of the table, each with its epoch and its time in seconds."""
    for row in csv.DictReader(results.replace("\0", "").splitlines()):
        if None in row or not all(row.values()):
            continue  # the row is incomplete after a full disk; the next row may be on the same line
        try:
            epoch, time = int(float(row["epoch"])), float(row["time"])
        except (KeyError, ValueError, OverflowError):
            continue  # the row or the header is incomplete
        yield epoch, time, row


def numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the finite values, rounded to six significant digits as in results.csv."""
    floats = {key: float(f"{float(value):.6g}") for key, value in (values or {}).items()}
    return {key: value for key, value in floats.items() if math.isfinite(value)}
