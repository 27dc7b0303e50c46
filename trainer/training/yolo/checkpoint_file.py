"""Checkpoints that survive: whole or not there, verified, and enough on their own to go on from on any host.

A checkpoint is Ultralytics' `last.pt` with members of ours added to its zip archive, which torch.load leaves alone:

    …/run/checkpoint.json    the fields of `Progress`
    …/run/results.csv        every epoch so far
    …/run/args.yaml          the arguments of the training
    …/run/best.pt            the best weights so far, stripped; absent when this state is the best itself
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trainer.core.events import CheckpointSaved
from trainer.core.job import JsonObject
from trainer.disk import durable

FOLDER = "checkpoints"
KEPT = 2  # generations
_FACTS = "checkpoint.json"
_TEXTS = ("results.csv", "args.yaml")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training had come when its state was kept."""

    epoch: int = 0  # finished epochs
    done: float = 0.0  # share of the next epoch's batches that were trained already
    complete: bool = False  # the last epoch is done, only the final evaluation is missing
    best_epoch: int | None = None
    train_seconds: float = 0.0
    batch: float | None = None  # with which it was trained last; the one that is asked for may not fit into the memory
    setup: JsonObject | None = None  # what the training is made of (core/resumption.py)


def folder_of(run_dir: Path) -> Path:
    """The folder of the run's checkpoints, which exists afterwards. Raises OSError."""
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def take(state: Path, run_dir: Path, progress: Progress, members: Mapping[str, Path]) -> Path:
    """Copy `state` and the files `members` into one file, which is no checkpoint before `settle` made it one."""
    taken = folder_of(run_dir) / f"epoch-{progress.epoch:05d}.tmp"
    try:
        shutil.copyfile(state, taken)
        _add(taken, progress, members)
    except BaseException:
        taken.unlink(missing_ok=True)
        raise
    return taken


def settle(taken: Path, progress: Progress) -> CheckpointSaved:
    """Make what was taken the newest generation; older ones than `KEPT` go.

    The file appears complete or not at all, and its sidecar (`epoch`, `sha256`, `bytes`) only after it.
    """
    path = taken.with_suffix(".pt")
    try:
        sha256 = _move(taken, path)
    finally:
        taken.unlink(missing_ok=True)
    size = path.stat().st_size
    facts = {**asdict(progress), "sha256": sha256, "bytes": size}
    taken.write_text(json.dumps(facts))
    _move(taken, path.with_suffix(".json"))
    _drop_old(path.parent)
    return CheckpointSaved(epoch=progress.epoch, sha256=sha256, bytes=size, path=str(path))


def restore(checkpoint: Path, run_dir: Path) -> Progress:
    """Lay out `run_dir` as it was when `checkpoint` was kept: weights/last.pt, weights/best.pt, results.csv, args.yaml.

    Raises OSError or zipfile.BadZipFile when it cannot be read.
    """
    weights = run_dir / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(checkpoint) as archive:
        ours = _our_folder(archive)
        present = {name.removeprefix(ours) for name in archive.namelist() if name.startswith(ours)}
        shutil.copyfile(checkpoint, weights / "last.pt")
        for name in _TEXTS:
            (run_dir / name).unlink(missing_ok=True)
            if lines := _whole_lines(archive.read(ours + name)) if name in present else b"":
                (run_dir / name).write_bytes(lines)
        (weights / "best.pt").unlink(missing_ok=True)
        if "best.pt" in present:
            (weights / "best.pt").write_bytes(archive.read(ours + "best.pt"))
        else:
            shutil.copyfile(checkpoint, weights / "best.pt")
    return progress_of(checkpoint)


def progress_of(checkpoint: Path) -> Progress:
    """How far the training had come. Raises OSError or zipfile.BadZipFile when it cannot be read."""
    with zipfile.ZipFile(checkpoint) as archive:
        facts = _our_folder(archive) + _FACTS
        known = json.loads(archive.read(facts)) if facts in archive.namelist() else {}
    return Progress(**{field.name: known[field.name] for field in fields(Progress) if field.name in known})


def best_of(checkpoint: Path, run_dir: Path) -> Path:
    """Copy the best weights in it to the run folder's checkpoints; the copy. Raises OSError or zipfile.BadZipFile."""
    best = folder_of(run_dir) / "start.pt"
    with zipfile.ZipFile(checkpoint) as archive:
        member = _our_folder(archive) + "best.pt"
        if member in archive.namelist():
            best.write_bytes(archive.read(member))
        else:
            shutil.copyfile(checkpoint, best)
    return best


def results_of(checkpoint: Path) -> str:
    """The results.csv in it, "" when there is none. Raises OSError or zipfile.BadZipFile when it cannot be read."""
    with zipfile.ZipFile(checkpoint) as archive:
        results = _our_folder(archive) + "results.csv"
        return archive.read(results).decode(errors="replace") if results in archive.namelist() else ""


def forget(run_dir: Path) -> None:
    """Remove what an earlier attempt left in `run_dir`, so that a training from the start is nobody's heir."""
    for path in [*(run_dir / FOLDER).glob("epoch-*"), *(run_dir / "weights").glob("*.pt")]:
        path.unlink(missing_ok=True)


def is_whole(weights: Path) -> bool:
    """Whether a `.pt` file was written to its end."""
    return weights.is_file() and zipfile.is_zipfile(weights)


def _add(path: Path, progress: Progress, members: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        ours = _our_folder(archive)
        archive.writestr(ours + _FACTS, json.dumps(asdict(progress)))
        for name, file in members.items():
            archive.write(file, ours + name)


def _whole_lines(text: bytes) -> bytes:
    """The text without a last line that was cut: the next row of results.csv would continue it."""
    return text[: text.rfind(b"\n") + 1]


def _our_folder(archive: zipfile.ZipFile) -> str:
    # torch refuses an archive with anything outside of the one folder that it made
    return archive.namelist()[0].partition("/")[0] + "/run/"


def _move(beside: Path, path: Path) -> str:
    """Move a finished file to its name, durably; its sha-256."""
    with beside.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    durable.replace(beside, path)
    return sha256


def _drop_old(folder: Path) -> None:
    newest_first = sorted(folder.glob("epoch-*.pt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in newest_first[KEPT:]:
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
