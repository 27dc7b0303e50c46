"""Checkpoints between attempts: found again on this host or brought from the bucket, and what becomes of them.

A training keeps its newest generations in `<run_dir>/checkpoints/` as `epoch-00007.pt` with a sidecar
`epoch-00007.json` (`epoch`, `sha256`, `bytes`), each written beside and renamed, so a name that exists is whole
unless the disk lied, which the sha-256 finds out. What is in a checkpoint was written by the training process; the
part that is read here is bounded.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, Unavailable
from trainer.core.events import Event, Warned
from trainer.core.job import Checkpoint, Job, JsonObject
from trainer.core.ports import ObjectStore, TrainingOrder
from trainer.core.resumption import Decision, Resume, Setup, are_comparable, decide
from trainer.core.stop import StopSignal
from trainer.remote.retry import RetryPolicy, retrying
from trainer.worker.places import attempt_of

_MOST_FACTS = 2**20  # bytes
_MOST_DIGITS = 10  # of an attempt's number
_MOST_SHOWN = 10  # changes in a message
_LARGEST_DIRECTORY = 8 * 2**20  # bytes; that of yolo11x has some hundred KiB
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError),
    *(LookupError, ValueError, RecursionError, NotImplementedError),
)


# A 404, or a login page in place of the object, can pass within a minute; without the checkpoint, hours of training are lost.
BELIEVED_AFTER = RetryPolicy(tries=1000, first_wait=1.0, longest_wait=10.0, total_seconds=60)


class _NotThere(Unavailable):
    """The bucket does not have the checkpoint that was uploaded; `code` is that of the warning."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint that is whole, with what it records, and what to do with it."""

    path: Path
    attempt: int  # that trained it
    epoch: int  # finished epochs
    best_epoch: int
    setup: Setup | None
    decision: Decision


class Checkpoints:
    """The checkpoints of one run: this host's, in the folders of its attempts, and the bucket's newest one.

    One from the bucket is brought to the run folder `target`. What is wrong with them is told as warnings.
    """

    def __init__(
        self,
        job: Job,
        run_dirs: list[Path],
        target: Path,
        store: ObjectStore,
        bucket: str,
        on_event: Callable[[Event], None],
    ) -> None:
        self._run_dirs = run_dirs
        self._target = target
        self._store = store
        self._bucket = bucket
        self._on_event = on_event
        self._remote = job.checkpoint if job.checkpoint and job.checkpoint.key else None
        self._told_epoch = job.told_epoch

    def best_for(self, setup: Setup, stop: StopSignal) -> Found | None:
        """The newest checkpoint whose training can be resumed as `setup`, else the newest one, else None.

        So a newer checkpoint of other settings does not stand before one that this training kept.

        Raises Unavailable or Misconfigured when the bucket has the newest one and does not hand it out now: what it
        holds took hours to train.
        """
        newest, has_any = None, False
        for path, checkpoint in self._newest_first(stop):
            has_any = True
            if path is None:
                continue
            found = _found(path, checkpoint, setup)
            if isinstance(found.decision, Resume):
                return found
            newest = newest or found
        if has_any and newest is None:
            self._warn("no_checkpoint", "No checkpoint is usable; the training starts from epoch 1.")
        return newest

    def _newest_first(self, stop: StopSignal) -> Iterator[tuple[Path | None, Checkpoint]]:
        """Every checkpoint; without its path when it is not usable. The bucket's is fetched when its turn comes."""
        remote = self._remote
        local = [found for folder in self._run_dirs for found in _local(folder)]
        for path, checkpoint in sorted(local, key=self._rank, reverse=True):
            if remote and (remote.epoch > checkpoint.epoch or self._is_superseded(path, checkpoint)):
                yield self._download(remote, stop), remote
                remote = None
            is_whole = _is_whole(path, checkpoint)
            if not is_whole:
                self._warn("checkpoint_broken", f"The checkpoint of epoch {checkpoint.epoch} is damaged.")
            yield path if is_whole else None, checkpoint
        if remote:
            yield self._download(remote, stop), remote

    def _rank(self, local: tuple[Path, Checkpoint]) -> tuple[bool, int, int]:
        """By what checkpoints are ordered; of two with as many epochs, the later one may be in the middle of the next."""
        path, checkpoint = local
        return not self._is_superseded(path, checkpoint), checkpoint.epoch, path.stat().st_mtime_ns

    def _is_superseded(self, path: Path, checkpoint: Checkpoint) -> bool:
        """Whether a later attempt elsewhere trained the same epochs again, with other numbers: its history counts."""
        later = _attempt_of_key(self._remote.key) if self._remote and self._remote.key else 0
        return checkpoint.epoch <= self._told_epoch and _trained_by(path, checkpoint) < later

    def _download(self, remote: Checkpoint, stop: StopSignal) -> Path | None:
        try:
            return retrying(lambda: self._downloaded(remote, stop), BELIEVED_AFTER, stop)
        except _NotThere as error:
            self._warn(error.code, str(error))
            return None

    def _downloaded(self, remote: Checkpoint, stop: StopSignal) -> Path:
        """The file. Raises `_NotThere` while the bucket does not hand out what was uploaded."""
        folder = self._target / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"epoch-{remote.epoch:05d}.pt"
        assert remote.key is not None
        try:
            self._store.download(ObjectRef(bucket=self._bucket, key=remote.key), path, stop)
        except BadRequest as error:
            raise _NotThere("checkpoint_missing", f"The checkpoint in the bucket cannot be had: {error}") from error
        if not _is_whole(path, remote):
            path.unlink()
            raise _NotThere("checkpoint_broken", f"The bucket's checkpoint of epoch {remote.epoch} is damaged.")
        facts = asdict(remote)  # with the key, which says who trained it: not the attempt whose folder this is
        path.with_suffix(".json").write_text(json.dumps(facts))
        return path

    def _warn(self, code: str, message: str) -> None:
        self._on_event(Warned(code=code, message=message))


def continued(order: TrainingOrder, setup: Setup, found: Found) -> tuple[TrainingOrder, list[Warned]]:
    """The order as it begins from the checkpoint, and what the run's history says about that."""
    decision, changes = found.decision, _listed(found.decision.changes)
    if isinstance(decision, Resume):
        events = [Warned(code="resumed", message=f"Resumed from the checkpoint of epoch {found.epoch}.")]
        if changes:
            message = f"The row asks for something else since this checkpoint, and the training continues with that: {changes}."
            if not are_comparable(found.setup, setup):
                message += " This changes how epochs are measured, so the best model is one of the epochs that follow."
            events.append(Warned(code="resumed_with_changes", message=message))
        setup = replace(setup, started_from=found.setup.started_from if found.setup else None)
        return replace(order, resume=found.path, setup=setup.as_json()), events
    if decision.from_best:
        weights = f"the best weights of an earlier training of this run (epoch {found.best_epoch})"
        message = f"The training starts over from {weights}; a resumed one cannot change: {changes}."
        setup = replace(setup, started_from=weights)
        order = replace(order, best_of=found.path, setup=setup.as_json())
    else:
        message = f"The training starts over from {setup.model}, because it is another one: {changes}."
    return order, [Warned(code="started_over", message=message)]


def _listed(changes: tuple[str, ...]) -> str:
    more = f" and {len(changes) - _MOST_SHOWN} more" if len(changes) > _MOST_SHOWN else ""
    return ", ".join(changes[:_MOST_SHOWN]) + more


def _attempt_of_key(key: str) -> int:
    """The attempt that uploaded a checkpoint; 0 for a key of another form."""
    parts = key.split("/")
    return int(parts[2]) if len(parts) > 2 and parts[2].isdecimal() and len(parts[2]) <= _MOST_DIGITS else 0


def _trained_by(path: Path, checkpoint: Checkpoint) -> int:
    """The attempt that trained a checkpoint: the one whose folder it is in, unless it was fetched from the bucket."""
    return _attempt_of_key(checkpoint.key) if checkpoint.key else attempt_of(path.parent.parent)


def _local(run_dir: Path) -> Iterator[tuple[Path, Checkpoint]]:
    for sidecar in run_dir.glob("checkpoints/epoch-*.json"):
        path = sidecar.with_suffix(".pt")
        if _is_plain(sidecar) and _is_plain(path) and (checkpoint := _noted(sidecar)):
            yield path, checkpoint


def _noted(sidecar: Path) -> Checkpoint | None:
    try:
        with sidecar.open("rb") as file:
            facts = json.loads(file.read(_MOST_FACTS))
        epoch, sha256, size, key = facts["epoch"], facts["sha256"], facts["bytes"], facts.get("key")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # torn by a crash: the generation before it has its own
    if not isinstance(epoch, int) or not isinstance(size, int) or not isinstance(sha256, str):
        return None
    return Checkpoint(epoch=epoch, sha256=sha256, bytes=size, key=key if isinstance(key, str) else None)


def _is_plain(path: Path) -> bool:
    """Whether it is a file, and no link or pipe: a training process may have made it."""
    return path.is_file() and not path.is_symlink()


def _is_whole(path: Path, checkpoint: Checkpoint) -> bool:
    if path.stat().st_size != checkpoint.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == checkpoint.sha256


def _found(path: Path, checkpoint: Checkpoint, now: Setup) -> Found:
    facts = _facts(path)
    before = Setup.from_json(facts.get("setup"))
    best_epoch = facts.get("best_epoch")
    return Found(
        path=path,
        attempt=_trained_by(path, checkpoint),
        epoch=checkpoint.epoch,
        best_epoch=best_epoch if isinstance(best_epoch, int) else checkpoint.epoch,
        setup=before,
        decision=decide(before, now, epoch=checkpoint.epoch, complete=facts.get("complete") is True),
    )


def _facts(checkpoint: Path) -> JsonObject:
    """What the training noted in the checkpoint, {} when it cannot be read: then it is taken as it is."""
    try:
        with checkpoint.open("rb") as file:
            if not _has_modest_directory(file):
                return {}
            with zipfile.ZipFile(file) as archive:
                name = archive.namelist()[0].partition("/")[0] + "/run/checkpoint.json"
                with archive.open(name) as member:
                    facts = json.loads(member.read(_MOST_FACTS))
    except _UNREADABLE:
        return {}
    return facts if isinstance(facts, dict) else {}


def _has_modest_directory(file: BinaryIO) -> bool:
    """Whether the archive's directory, which `zipfile` reads into memory, is small. An archive of ours has no comment."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 42))
    end = file.read()
    is_plain = end[-22:-18] == b"PK\5\6" and end[-2:] == b"\0\0" and end[:4] != b"PK\6\7"  # PK\6\7: a larger one elsewhere
    return is_plain and int.from_bytes(end[-10:-6], "little") <= _LARGEST_DIRECTORY
