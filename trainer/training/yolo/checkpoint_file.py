"""Checkpoint files: written atomically, with a checksum, and complete, so that any host can resume from them.

A checkpoint is Ultralytics' `last.pt` with additional members in its zip archive, which torch.load ignores:

    …/run/checkpoint.json    the fields of `Progress`
    …/run/results.csv        one row per epoch so far
    …/run/args.yaml          the arguments of the training
    …/run/best.pt            the best weights so far, stripped; absent if this checkpoint is itself the best
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
from trainer.core.run_folder import BEST, RESULTS, OutputFolder
from trainer.disk import durable
from trainer.disk.checksum import sha256_of

KEPT = 2  # checkpoints
_FACTS = "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a training when its checkpoint was saved."""

    epoch: int = 0  # finished epochs
    done: float = 0.0  # share of the next epoch's batches that are trained, 0…1
    complete: bool = False  # True if only the final validation is missing
    best_epoch: int | None = None
    train_seconds: float = 0.0
    batch: float | None = None  # the last batch size; smaller than requested if memory ran out
    setup: JsonObject | None = None  # model, dataset and settings (core/resumption.py)


def checkpoints_folder(run_dir: Path) -> Path:
    """Return the folder of the run's checkpoints, and create it if it is missing. Raises OSError."""
    folder = OutputFolder(run_dir).checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare(state: Path, run_dir: Path, progress: Progress, members: Mapping[str, Path]) -> Path:
    """Copy `state` and the files `members` into one temporary file for `commit`. Return the path of the file."""
    prepared = checkpoints_folder(run_dir) / f"epoch-{progress.epoch:05d}.tmp"
    try:
        shutil.copyfile(state, prepared)
        with zipfile.ZipFile(prepared, "a", zipfile.ZIP_STORED) as archive:
            prefix = _member_folder(archive)
            archive.writestr(prefix + _FACTS, json.dumps(asdict(progress)))
            for name, file in members.items():
                archive.write(file, prefix + name)
    except BaseException:
        prepared.unlink(missing_ok=True)
        raise
    return prepared


def commit(prepared: Path, progress: Progress) -> CheckpointSaved:
    """Make a prepared file the newest checkpoint, and remove all but the `KEPT` newest ones.

    The checkpoint appears complete or not at all. Then the JSON file beside it is written, with the progress, `sha256`
    and `bytes`.
    """
    path = prepared.with_suffix(".pt")
    try:
        sha256 = sha256_of(prepared)
        durable.replace(prepared, path)
    finally:
        prepared.unlink(missing_ok=True)
    size = path.stat().st_size
    durable.write_text(path.with_suffix(".json"), json.dumps({**asdict(progress), "sha256": sha256, "bytes": size}))
    newest_first = sorted(path.parent.glob("epoch-*.pt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in newest_first[KEPT:]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return CheckpointSaved(epoch=progress.epoch, sha256=sha256, bytes=size)


def restore(checkpoint: Path, run_dir: Path) -> Progress:
    """Restore the run folder from a checkpoint. Return the progress of the checkpoint.

    The restored files are weights/last.pt, weights/best.pt, results.csv and args.yaml. Raises OSError or
    zipfile.BadZipFile if the checkpoint cannot be read.
    """
    folder, progress = OutputFolder(run_dir), read_progress(checkpoint)
    folder.weights.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint, folder.last)
    for name in (RESULTS, "args.yaml"):
        (run_dir / name).unlink(missing_ok=True)
        text = _read(checkpoint, name)
        # omit an incomplete last line, because the next row of results.csv would be appended to it
        if lines := text[: text.rfind(b"\n") + 1]:
            (run_dir / name).write_bytes(lines)
    extract_best(checkpoint, folder.best)
    return progress


def read_progress(checkpoint: Path) -> Progress:
    """Return the progress in a checkpoint. Raises OSError or zipfile.BadZipFile if the checkpoint cannot be read."""
    known = json.loads(_read(checkpoint, _FACTS) or b"{}")
    return Progress(**{field.name: known[field.name] for field in fields(Progress) if field.name in known})


def extract_best(checkpoint: Path, path: Path) -> Path:
    """Copy the best weights of a checkpoint to `path`. Return `path`. Raises OSError or zipfile.BadZipFile."""
    path.unlink(missing_ok=True)
    if best := _read(checkpoint, BEST):
        path.write_bytes(best)
    else:
        shutil.copyfile(checkpoint, path)
    return path


def read_results(checkpoint: Path) -> str:
    """Return the results.csv in a checkpoint, or "". Raises OSError or zipfile.BadZipFile for a damaged checkpoint."""
    return _read(checkpoint, RESULTS).decode(errors="replace")


def remove_stale(run_dir: Path) -> None:
    """Remove stale checkpoints and weights before a training from scratch."""
    folder = OutputFolder(run_dir)
    for path in [*folder.checkpoints.glob("epoch-*"), *folder.weights.glob("*.pt")]:
        path.unlink(missing_ok=True)


def _read(checkpoint: Path, name: str) -> bytes:
    """Return the content of a member, or b"" if it is missing."""
    with zipfile.ZipFile(checkpoint) as archive:
        member = _member_folder(archive) + name
        return archive.read(member) if member in archive.namelist() else b""


def _member_folder(archive: zipfile.ZipFile) -> str:
    # torch refuses an archive with members outside of its own folder
    return archive.namelist()[0].partition("/")[0] + "/run/"
