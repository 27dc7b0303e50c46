"""The marker of a finished training, in its run folder. After an interrupted upload, only the upload is repeated.

The model is published only if the weights still have the size and SHA-256 that the training reported.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from trainer.core import results_table
from trainer.core.events import EpochFinished, Finished, WeightsFile
from trainer.core.job import Json, JsonObject
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.resumption import DEFAULTS
from trainer.core.run_folder import FINISHED_MARKER, RESULTS, WEIGHTS, RunFolder
from trainer.disk import durable
from trainer.disk.untrusted_folder import LARGEST_FILE, UntrustedFolder

_LONGEST_ROW = 32 * 2**10  # bytes of a row of results.csv; a row has about 20 numbers
_MOST_NAMES = 64 * 2**20  # bytes of the names in all events of results.csv
_LARGEST = 16 * 2**20  # bytes of a marker or of results.csv; a report has a few hundred KiB
# compared in addition to `batch` and `args`; the other fields of a recorded plan depend on the service version
_COMPARED = ("sources", "model", "task", "epochs", "imgsz", "split", "exports", "predictions")
_FINISHED: TypeAdapter[Finished] = TypeAdapter(Finished)
_EPOCH: TypeAdapter[EpochFinished] = TypeAdapter(EpochFinished)


def write(folder: RunFolder, finished: Finished) -> None:
    """Write the marker atomically, after all other files of the folder are on disk. Raises OSError."""
    durable.sync_below(folder.path)
    durable.write_text(folder.finished_marker, json.dumps(asdict(finished)))


def read(folder: RunFolder) -> Finished | None:
    """Return the content of the marker, or None if there is no readable marker."""
    try:
        return _FINISHED.validate_json(_read(folder.path, FINISHED_MARKER))
    except ValueError:
        return None


def remove(folder: RunFolder) -> None:
    """Remove the marker. If the removal fails, the next attempt checks the marker again."""
    with contextlib.suppress(OSError):
        folder.finished_marker.unlink(missing_ok=True)


def epochs_after(epoch: int, folder: RunFolder, finished: Finished) -> list[EpochFinished]:
    """Return the epochs after `epoch` from results.csv: an earlier attempt finished them but could not report them.

    Return an empty list for a damaged table. The history then has a gap, but the model is still published.
    """
    table = _read(folder.output.path, RESULTS)
    lines = table.splitlines()
    # the events repeat the names in the header for each row
    if any(len(line) > _LONGEST_ROW for line in lines) or len(lines) * len(lines[0] if lines else b"") > _MOST_NAMES:
        return []
    try:
        # a recorded split has a digest instead of its images
        plan = TrainPlan.from_json({**finished.report["plan"], "split": None})
        found = list(results_table.epochs_after(epoch, table.decode(errors="replace"), plan))
        for event in found:
            _EPOCH.validate_python(asdict(event))  # the training process wrote the table: the limits of events apply
    except (ValueError, KeyError, TypeError, csv.Error):
        return []
    is_plausible = [event.epoch for event in found] == list(range(epoch + 1, epoch + 1 + len(found)))
    return found if is_plausible and epoch + len(found) <= plan.epochs else []


def find_damage(folder: RunFolder, finished: Finished, before_chunk: Callable[[], object]) -> str | None:
    """Return a description of the damage to the weights of a finished training, or None if they are unchanged.

    `before_chunk` can raise an exception to stop the calculation of the checksums.
    """
    with UntrustedFolder(folder.output.path) as output:
        damages = (_damage(output, name, weights, before_chunk) for name, weights in finished.weights.items())
        return next(filter(None, damages), None)


def trained_plan(order: TrainingOrder, finished: Finished) -> JsonObject:
    """Return the recorded plan with the actual batch size and the actual initial weights."""
    plan, batch = order.plan.recorded(), finished.report.get("batch")
    if isinstance(batch, int | float) and batch and batch != order.plan.batch:
        plan |= {"batch": batch, "asked_batch": order.plan.batch}
    started_from = order.setup and order.setup["started_from"]
    return plan | {"started_from": started_from} if started_from else plan


def is_requested(finished: Finished, plan: TrainPlan) -> bool:
    """Return whether `plan` and the plan of the finished training agree in `_COMPARED`, `batch` and `args`.

    `args.workers` is not compared.
    """
    return _settings(finished.report.get("plan")) == _settings(plan.recorded())


def _read(folder: Path, name: str) -> bytes:
    """Return the content of a regular file of at most 16 MiB, or b""."""
    try:
        with UntrustedFolder(folder) as opened:
            return opened.read(name, _LARGEST)
    except OSError:
        return b""


def _settings(plan: Json) -> str:
    """Return the compared settings of a recorded plan, as text; "" for a value that is not a recorded plan."""
    if not isinstance(plan, dict) or not isinstance(plan.get("args"), dict):
        return ""
    args = {name: value for name, value in {**DEFAULTS, **plan["args"]}.items() if name != "workers"}
    compared = {name: plan[name] for name in _COMPARED if name in plan}
    batch = plan.get("asked_batch", plan.get("batch"))
    return json.dumps({**compared, "args": args, "batch": batch}, sort_keys=True)


def _damage(output: UntrustedFolder, name: str, weights: WeightsFile, before_chunk: Callable[[], object]) -> str | None:
    try:
        with output.file(f"{WEIGHTS}/{name}") as file:
            if file.bytes != weights.bytes:
                return f"{name} has {file.bytes} of {weights.bytes} bytes"
            if file.bytes > LARGEST_FILE:
                return f"{name} has more than {LARGEST_FILE >> 30} GiB"
            return None if file.sha256(before_chunk) == weights.sha256 else f"{name} has changed"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
