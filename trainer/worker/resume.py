"""Selection of the checkpoint to resume from: a checkpoint on this host, or the newest checkpoint in the bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.core.artifact_keys import attempt_of, is_checkpoint_of
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, Unavailable
from trainer.core.events import Warned
from trainer.core.job import Checkpoint
from trainer.core.ports import ObjectStore, TrainingOrder
from trainer.core.resumption import Decision, Resume, Setup, are_comparable, decide
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.run_folder import RunFolder, checkpoint_name
from trainer.disk.untrusted_folder import Unreadable, UntrustedFolder
from trainer.worker.checkpoint_files import (
    LocalCheckpoint,
    is_intact,
    is_valid,
    local_checkpoints,
    read_metadata,
    write_sidecar,
)
from trainer.worker.run_context import RunContext

_MOST_LISTED = 10  # maximum number of changes in a message
_LONGEST_CHANGES = 1000  # characters; a checkpoint contains the names of the settings
_NOT_APPLIED = "a resumed training cannot apply these changes"

# a 404 or a login page instead of the object can be temporary; without the checkpoint, hours of training are lost
MISSING_RETRIES = RetryPolicy(tries=1000, first_wait=1.0, longest_wait=10.0, total_seconds=60)


class _NotInBucket(Unavailable):
    """The uploaded checkpoint is not in the bucket. `code` is the code of the warning."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class FoundCheckpoint:
    """An intact checkpoint, its metadata, and the decision whether the training can resume from it.

    `path` is in the folder `resumed` of the current attempt, where no training process can replace it.
    """

    path: Path
    attempt: int  # attempt that wrote the checkpoint
    epoch: int  # number of finished epochs
    best_epoch: int
    setup: Setup | None
    decision: Decision


class CheckpointFinder:
    """Finds the checkpoints of a run in the folders of its `attempts`, and the newest checkpoint in the bucket.

    The checkpoint in the bucket is downloaded into the run folder. Damaged and missing checkpoints cause warnings.
    """

    def __init__(self, run: RunContext, attempts: list[RunFolder], store: ObjectStore, bucket: str) -> None:
        self._run = run
        self._attempts = attempts
        self._store = store
        self._bucket = bucket
        self._remote = _uploaded_checkpoint(run)

    def best_for(self, setup: Setup) -> FoundCheckpoint | None:
        """Return the newest checkpoint from which a training with `setup` can resume.

        If there is no such checkpoint, return the newest one, or None if no checkpoint is usable. An older checkpoint
        with the settings of this training is preferred to a newer checkpoint with other settings.

        Raises Unavailable or Misconfigured if the newest checkpoint is in the bucket and cannot be downloaded now.
        """
        newest, has_any = None, False
        for path, epoch, attempt in self._newest_first():
            has_any = True
            if path is None:
                continue
            found = _found(path, epoch, attempt, setup)
            if isinstance(found.decision, Resume):
                return found
            newest = newest or found
        if has_any and newest is None:
            self._run.warn("no_checkpoint", "No checkpoint is usable; the training starts from epoch 1.")
        return newest

    def _newest_first(self) -> Iterator[tuple[Path | None, int, int]]:
        """Yield each checkpoint (None for an unusable file), its epoch and the attempt that wrote it.

        The checkpoint in the bucket is downloaded on demand.
        """
        remote = self._remote
        local = [found for folder in self._attempts for found in local_checkpoints(folder)]
        for found in sorted(local, key=self._rank, reverse=True):
            if remote and (remote.epoch > found.sidecar.epoch or self._is_superseded(found)):
                yield self._download(remote), remote.epoch, attempt_of(remote.key or "")
                remote = None
            yield self._verified(found), found.sidecar.epoch, found.attempt
        if remote:
            yield self._download(remote), remote.epoch, attempt_of(remote.key or "")

    def _rank(self, local: LocalCheckpoint) -> tuple[bool, int, int]:
        """Return the sort key. Of two files with the same epoch, the newer file can include part of the next epoch."""
        return not self._is_superseded(local), local.sidecar.epoch, local.modified_ns

    def _is_superseded(self, local: LocalCheckpoint) -> bool:
        """Return whether a later attempt on another host trained these epochs again and reported their metrics."""
        later = attempt_of(self._remote.key or "") if self._remote else 0
        return local.sidecar.epoch <= self._run.job.last_reported_epoch and local.attempt < later

    def _verified(self, local: LocalCheckpoint) -> Path | None:
        """Link the checkpoint into the folder `resumed` and return the link, or None if the checkpoint is damaged."""
        target = self._run.folder.resumed / f"{local.attempt}-{checkpoint_name(local.sidecar.epoch)}"
        with suppress(Unreadable), UntrustedFolder(local.folder) as folder, folder.file(local.name) as file:
            if is_intact(file, local.sidecar.sha256, local.sidecar.bytes, self._run.stop.raise_if_set):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                file.link_to(target)
                return target
        self._run.warn("checkpoint_broken", f"The checkpoint of epoch {local.sidecar.epoch} is damaged.")
        return None

    def _download(self, remote: Checkpoint) -> Path | None:
        try:
            return retrying(lambda: self._downloaded(remote), MISSING_RETRIES, self._run.stop)
        except _NotInBucket as error:
            self._run.warn(error.code, str(error))
            return None

    def _downloaded(self, remote: Checkpoint) -> Path:
        """Download the checkpoint and return its path. Raises `_NotInBucket` if it is not in the bucket."""
        path = self._run.folder.resumed / checkpoint_name(remote.epoch)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert remote.key is not None
        try:
            self._store.download(ObjectRef(bucket=self._bucket, key=remote.key), path, self._run.stop)
        except BadRequest as error:
            message = f"The uploaded checkpoint of epoch {remote.epoch} is not available: {error}"
            raise _NotInBucket("checkpoint_missing", message) from error
        with UntrustedFolder(path.parent) as folder, folder.file(path.name) as file:
            is_usable = is_intact(file, remote.sha256, remote.bytes, self._run.stop.raise_if_set)
        if not is_usable:
            path.unlink()
            raise _NotInBucket("checkpoint_broken", f"The uploaded checkpoint of epoch {remote.epoch} is damaged.")
        write_sidecar(path, remote)
        return path


def resumed_order(order: TrainingOrder, setup: Setup, found: FoundCheckpoint) -> tuple[TrainingOrder, list[Warned]]:
    """Return the training order with the checkpoint to start from, and the warnings for the user."""
    changes = _listed(found.decision.changes)
    if isinstance(found.decision, Resume):
        setup_now = replace(setup, started_from=_started_from(found))
        return replace(order, resume=found.path, setup=setup_now.as_json()), _resume_events(setup, found, changes)
    if found.decision.from_best:
        weights = f"the best weights of an earlier training of this run (epoch {found.best_epoch})"
        message = f"The training starts over from {weights}, because {_NOT_APPLIED}: {changes}."
        setup = replace(setup, started_from=weights)
        order = replace(order, best_of=found.path, setup=setup.as_json())
    else:
        message = f"The training starts over from {setup.model}, because {_NOT_APPLIED}: {changes}."
    return order, [Warned(code="started_over", message=message)]


def _started_from(found: FoundCheckpoint) -> str | None:
    text = found.setup.started_from if found.setup else None
    return text and text[:_LONGEST_CHANGES]


def _resume_events(setup: Setup, found: FoundCheckpoint, changes: str) -> list[Warned]:
    events = [Warned(code="resumed", message=f"Resumed from the checkpoint of epoch {found.epoch}.")]
    if changes:
        message = f"Settings changed since this checkpoint; the training continues with the new settings: {changes}."
        if not are_comparable(found.setup, setup):
            message += " Old and new metrics are not comparable, so best.pt is selected only from the next epochs."
        events.append(Warned(code="resumed_with_changes", message=message))
    return events


def _uploaded_checkpoint(run: RunContext) -> Checkpoint | None:
    """Return the uploaded checkpoint in the row, or None if it cannot be a checkpoint that a worker uploaded."""
    found = run.job.checkpoint
    if found is None or found.key is None or not is_checkpoint_of(run.job.id, found.key):
        return None
    return found if is_valid(found.epoch, found.sha256, found.bytes) else None


def _found(path: Path, epoch: int, attempt: int, now: Setup) -> FoundCheckpoint:
    metadata = read_metadata(path)
    before = Setup.from_json(metadata.get("setup"))
    best_epoch = metadata.get("best_epoch")
    return FoundCheckpoint(
        path=path,
        attempt=attempt,
        epoch=epoch,
        best_epoch=best_epoch if isinstance(best_epoch, int) and 0 < best_epoch < epoch else epoch,
        setup=before,
        decision=decide(before, now, epoch=epoch, complete=metadata.get("complete") is True),
    )


def _listed(changes: tuple[str, ...]) -> str:
    more = f" and {len(changes) - _MOST_LISTED} more" if len(changes) > _MOST_LISTED else ""
    return ", ".join(changes[:_MOST_LISTED])[:_LONGEST_CHANGES] + more
