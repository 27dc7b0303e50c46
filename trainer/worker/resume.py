"""Checkpoints between attempts: found again on this host or brought from the bucket.

A training keeps its newest generations in `<run_dir>/checkpoints/` as `epoch-00007.pt` with a sidecar
`epoch-00007.json` (`epoch`, `sha256`, `bytes`), each written beside and renamed, so a name that exists is whole
unless the disk lied, which the sha-256 finds out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest
from trainer.core.events import Event, Warned
from trainer.core.job import Checkpoint, Job
from trainer.core.ports import ObjectStore
from trainer.core.stop import StopSignal


def checkpoint_to_resume(
    job: Job,
    run_dirs: list[Path],
    target: Path,
    store: ObjectStore,
    bucket: str,
    stop: StopSignal,
    on_event: Callable[[Event], None],
) -> tuple[Path, int] | None:
    """The newest usable checkpoint as (file, finished epochs), or None to start from the beginning.

    Tries this host's generations and the bucket's, newest epoch first; what is broken is skipped with a warning.
    Raises Unavailable or Misconfigured when the bucket has the newest one and does not hand it out now: what it
    holds took hours to train.
    """
    local = sorted((c for folder in run_dirs for c in _local(folder)), key=lambda c: c[1].epoch, reverse=True)
    remote = job.checkpoint if job.checkpoint and job.checkpoint.key else None
    for path, checkpoint in local:
        if remote and remote.epoch > checkpoint.epoch:
            break
        if _is_whole(path, checkpoint):
            return path, checkpoint.epoch
        on_event(Warned(code="checkpoint_broken", message=f"The checkpoint of epoch {checkpoint.epoch} is damaged."))
    downloaded = _download(remote, target, store, bucket, stop, on_event) if remote else None
    if remote and downloaded:
        return downloaded, remote.epoch
    for path, checkpoint in local:
        if remote and checkpoint.epoch < remote.epoch and _is_whole(path, checkpoint):
            return path, checkpoint.epoch
    if local or remote:
        on_event(Warned(code="no_checkpoint", message="No checkpoint is usable; the training starts from epoch 1."))
    return None


def _local(run_dir: Path) -> Iterator[tuple[Path, Checkpoint]]:
    for sidecar in run_dir.glob("checkpoints/epoch-*.json"):
        try:
            facts = json.loads(sidecar.read_text())
            checkpoint = Checkpoint(epoch=facts["epoch"], sha256=facts["sha256"], bytes=facts["bytes"])
        except (ValueError, KeyError, TypeError):
            continue  # torn by a crash: the generation before it has its own
        if (path := sidecar.with_suffix(".pt")).exists():
            yield path, checkpoint


def _is_whole(path: Path, checkpoint: Checkpoint) -> bool:
    if path.stat().st_size != checkpoint.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == checkpoint.sha256


def _download(
    remote: Checkpoint,
    target: Path,
    store: ObjectStore,
    bucket: str,
    stop: StopSignal,
    on_event: Callable[[Event], None],
) -> Path | None:
    folder = target / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{remote.epoch:05d}.pt"
    assert remote.key is not None
    try:
        store.download(ObjectRef(bucket=bucket, key=remote.key), path, stop)
    except BadRequest as error:
        on_event(Warned(code="checkpoint_missing", message=f"The checkpoint in the bucket cannot be had: {error}"))
        return None
    if not _is_whole(path, remote):
        path.unlink()
        on_event(
            Warned(code="checkpoint_broken", message=f"The bucket's checkpoint of epoch {remote.epoch} is damaged.")
        )
        return None
    facts = {"epoch": remote.epoch, "sha256": remote.sha256, "bytes": remote.bytes}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path
