"""The marker of a finished training, in its run folder: if only the upload was interrupted, only the upload is repeated.

The marker alone is not believed: the weights must still be the ones that the training named in its last word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from trainer.core import results_table
from trainer.core.events import EpochFinished, Finished, WeightsFile
from trainer.core.job import Json, JsonObject
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.resumption import DEFAULTS
from trainer.disk import durable

MARKER = ".finished.json"
RESULTS = "results.csv"

_LARGEST = 16 * 2**20  # bytes of a marker or of results.csv; a report has some hundred KiB
# and the batch and the arguments; the rest says how the service read the row, which another version may word differently
_DECIDES = ("sources", "model", "task", "epochs", "imgsz", "split", "exports", "predictions")
_FINISHED: TypeAdapter[Finished] = TypeAdapter(Finished)


def remember(run_dir: Path, finished: Finished) -> None:
    """Write the marker, whole or not at all, once everything else in the folder would survive a power cut. Raises OSError."""
    durable.sync_below(run_dir)
    durable.write_text(run_dir / MARKER, json.dumps(asdict(finished)))


def recall(run_dir: Path) -> Finished | None:
    """Return what the marker says, or None without one that can be read."""
    marker = run_dir / MARKER
    try:
        if marker.is_symlink() or not marker.is_file() or marker.stat().st_size > _LARGEST:
            return None
        return _FINISHED.validate_json(marker.read_bytes())
    except (OSError, ValueError):
        return None


def epochs_after(epoch: int, run_dir: Path, finished: Finished) -> list[EpochFinished]:
    """Return the epochs after `epoch`, which an earlier attempt finished and could not tell any more.

    None for a table that was damaged: the history has a gap then, which costs no model.
    """
    table = run_dir / RESULTS
    try:
        if table.is_symlink() or not table.is_file() or table.stat().st_size > _LARGEST:
            return []
        plan = TrainPlan.from_json(finished.report["plan"])
        found = list(results_table.epochs_after(epoch, table.read_text(errors="replace"), plan))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    is_plausible = [event.epoch for event in found] == list(range(epoch + 1, epoch + 1 + len(found)))
    return found if is_plausible and epoch + len(found) <= plan.epochs else []


def damage(run_dir: Path, finished: Finished) -> str | None:
    """Return what is wrong with the weights that `finished` names, or None if they are as the training left them."""
    return next(filter(None, (_damage(run_dir, weights) for weights in (finished.best, finished.last))), None)


def trained_plan(order: TrainingOrder, finished: Finished) -> JsonObject:
    """The plan as it was really trained: another batch may have fitted, and the weights may be an earlier training's."""
    plan, batch = order.plan.recorded(), finished.report.get("batch")
    if batch and batch != order.plan.batch:
        plan |= {"batch": batch, "asked_batch": order.plan.batch}
    started_from = order.setup and order.setup["started_from"]
    return plan | {"started_from": started_from} if started_from else plan


def is_asked_for(finished: Finished, plan: TrainPlan) -> bool:
    """Whether `plan` is the one that was trained, apart from what belongs to the host."""
    return _settings(finished.report.get("plan")) == _settings(plan.recorded())


def is_inside(path: Path, run_dir: Path) -> bool:
    """Whether `path` is below `run_dir` and no link leads elsewhere: the training process may have named any path."""
    return path.is_relative_to(run_dir) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(run_dir))


def forget(run_dir: Path) -> None:
    """Remove the marker; one that cannot be removed is only looked at again."""
    with contextlib.suppress(OSError):
        (run_dir / MARKER).unlink(missing_ok=True)


def _settings(plan: Json) -> str:
    """What a recorded plan asks for; empty for anything else."""
    if not isinstance(plan, dict) or not isinstance(plan.get("args"), dict):
        return ""
    args = {name: value for name, value in {**DEFAULTS, **plan["args"]}.items() if name != "workers"}
    asked = {name: plan[name] for name in _DECIDES if name in plan}
    batch = plan.get("asked_batch", plan.get("batch"))
    return json.dumps({**asked, "args": args, "batch": batch}, sort_keys=True)


def _damage(run_dir: Path, weights: WeightsFile) -> str | None:
    path = Path(weights.path)
    if not is_inside(path, run_dir):
        return f"{path} is not in the run's folder"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{path.name} is not a file"
        if found.st_size != weights.bytes:
            return f"{path.name} has {found.st_size} of {weights.bytes} bytes"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None if digest == weights.sha256 else f"{path.name} has changed"
