"""Checkpoint files: written atomically, with a checksum, and complete, so that any host can resume from one.

A checkpoint is Ultralytics' `last.pt` with more members in its zip archive, which torch.load ignores:

    …/run/checkpoint.json    the fields of `Progress`
    …/run/results.csv        one row per epoch so far
    …/run/args.yaml          the arguments of the training
    …/run/best.pt            the best weights so far, stripped; absent if this checkpoint is the best itself
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trainer.core.events import CheckpointSaved
from trainer.core.job import JsonObject
from trainer.core.run_folder import BEST, RESULTS, RunFolder
from trainer.disk import durable
from trainer.disk.checksum import sha256_of

KEPT = 2  # checkpoints
_FACTS = "checkpoint.json"
_TEXTS = (RESULTS, "args.yaml")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training was when its checkpoint was saved."""

    epoch: int = 0  # finished epochs
    done: float = 0.0  # share of the next epoch's batches that are trained, 0…1
    complete: bool = False  # the last epoch is trained, only the final validation is missing
    best_epoch: int | None = None
    train_seconds: float = 0.0
    batch: float | None = None  # used last; may be smaller than requested, if memory ran out
    setup: JsonObject | None = None  # model, dataset and settings (core/resumption.py)


def checkpoints_folder(run_dir: Path) -> Path:
    """Return the folder of the run's checkpoints, and create it if it is missing. Raises OSError."""
    folder = RunFolder(run_dir).checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare(state: Path, run_dir: Path, progress: Progress, members: Mapping[str, Path]) -> Path:
    """Copy `state` and the files `members` into one temporary file, which `commit` makes a checkpoint. Return its path."""
    prepared = checkpoints_folder(run_dir) / f"epoch-{progress.epoch:05d}.tmp"
    try:
        shutil.copyfile(state, prepared)
        _add(prepared, progress, members)
    except BaseException:
        prepared.unlink(missing_ok=True)
        raise
    return prepared


def commit(prepared: Path, progress: Progress) -> CheckpointSaved:
    """Make a prepared file the newest checkpoint, and remove all but the `KEPT` newest ones.

    The checkpoint appears complete or not at all. The JSON file beside it, with `epoch`, `sha256` and `bytes`, follows.
    """
    path = prepared.with_suffix(".pt")
    try:
        sha256 = _rename(prepared, path)
    finally:
        prepared.unlink(missing_ok=True)
    size = path.stat().st_size
    facts = {**asdict(progress), "sha256": sha256, "bytes": size}
    prepared.write_text(json.dumps(facts))
    _rename(prepared, path.with_suffix(".json"))
    _remove_old(path.parent)
    return CheckpointSaved(epoch=progress.epoch, sha256=sha256, bytes=size, path=str(path))


def restore(checkpoint: Path, run_dir: Path) -> Progress:
    """Restore the run folder from a checkpoint: weights/last.pt, weights/best.pt, results.csv, args.yaml. Return its progress.

    Raises OSError or zipfile.BadZipFile if the checkpoint cannot be read.
    """
    folder = RunFolder(run_dir)
    folder.weights.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(checkpoint) as archive:
        prefix = _member_folder(archive)
        present = {name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)}
        shutil.copyfile(checkpoint, folder.last)
        for name in _TEXTS:
            (run_dir / name).unlink(missing_ok=True)
            if lines := _complete_lines(archive.read(prefix + name)) if name in present else b"":
                (run_dir / name).write_bytes(lines)
        folder.best.unlink(missing_ok=True)
        if BEST in present:
            folder.best.write_bytes(archive.read(prefix + BEST))
        else:
            shutil.copyfile(checkpoint, folder.best)
    return read_progress(checkpoint)


def read_progress(checkpoint: Path) -> Progress:
    """Return the progress in a checkpoint. Raises OSError or zipfile.BadZipFile if the checkpoint cannot be read."""
    with zipfile.ZipFile(checkpoint) as archive:
        facts = _member_folder(archive) + _FACTS
        known = json.loads(archive.read(facts)) if facts in archive.namelist() else {}
    return Progress(**{field.name: known[field.name] for field in fields(Progress) if field.name in known})


def extract_best(checkpoint: Path, run_dir: Path) -> Path:
    """Copy the best weights of a checkpoint to start.pt in the run folder's checkpoints. Return the copy.

    Raises OSError or zipfile.BadZipFile.
    """
    best = checkpoints_folder(run_dir) / "start.pt"
    with zipfile.ZipFile(checkpoint) as archive:
        member = _member_folder(archive) + BEST
        if member in archive.namelist():
            best.write_bytes(archive.read(member))
        else:
            shutil.copyfile(checkpoint, best)
    return best


def read_results(checkpoint: Path) -> str:
    """Return the results.csv in a checkpoint, or "". Raises OSError or zipfile.BadZipFile if the checkpoint cannot be read."""
    with zipfile.ZipFile(checkpoint) as archive:
        results = _member_folder(archive) + RESULTS
        return archive.read(results).decode(errors="replace") if results in archive.namelist() else ""


def remove_stale(run_dir: Path) -> None:
    """Remove stale checkpoints and weights before a training from scratch."""
    for path in [*RunFolder(run_dir).checkpoints.glob("epoch-*"), *RunFolder(run_dir).weights.glob("*.pt")]:
        path.unlink(missing_ok=True)


def is_complete(weights: Path) -> bool:
    """Return whether a `.pt` file was written to its end."""
    return weights.is_file() and zipfile.is_zipfile(weights)


def _add(path: Path, progress: Progress, members: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        prefix = _member_folder(archive)
        archive.writestr(prefix + _FACTS, json.dumps(asdict(progress)))
        for name, file in members.items():
            archive.write(file, prefix + name)


def _complete_lines(text: bytes) -> bytes:
    """Return the text without an incomplete last line, which the next row of results.csv would continue."""
    return text[: text.rfind(b"\n") + 1]


def _member_folder(archive: zipfile.ZipFile) -> str:
    # torch refuses an archive with members outside of its own folder
    return archive.namelist()[0].partition("/")[0] + "/run/"


def _rename(beside: Path, path: Path) -> str:
    """Rename a finished file durably; return its SHA-256."""
    sha256 = sha256_of(beside)
    durable.replace(beside, path)
    return sha256


def _remove_old(folder: Path) -> None:
    newest_first = sorted(folder.glob("epoch-*.pt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in newest_first[KEPT:]:
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
