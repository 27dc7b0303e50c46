"""The object keys of a run in the artifacts bucket.

    training_runs/<run id>/<attempt>/…                                          the artifacts of an attempt
    training_runs/<run id>/<attempt>/checkpoints/epoch-00007-<sha256[:8]>.pt    the uploaded checkpoints of an attempt

Each attempt has its own prefix, so a worker that lost its lease cannot change the files of a later attempt.
"""

from __future__ import annotations

import re

from trainer.core.run_folder import CHECKPOINTS

ROOT = "training_runs"
_CHECKPOINT = re.compile(rf"[0-9]{{1,10}}/{CHECKPOINTS}/[^/]+\.pt")
_ATTEMPT = re.compile(rf"{ROOT}/[^/]+/([0-9]{{1,10}})/")
_OF_RUN = re.compile(rf"{ROOT}/([^/]+)/.+")


def attempt_prefix(run_id: str, attempt: int) -> str:
    """Return the key prefix of an attempt, without a slash at the end."""
    return f"{ROOT}/{run_id}/{attempt}"


def checkpoint_key(run_id: str, attempt: int, epoch: int, sha256: str) -> str:
    """Return the key of a checkpoint, with 8 digits of its SHA-256, so that different files have different keys."""
    return f"{attempt_prefix(run_id, attempt)}/{CHECKPOINTS}/epoch-{epoch:05d}-{sha256[:8]}.pt"


def is_checkpoint_of(run_id: str, key: str) -> bool:
    """Return whether `key` is the key of a checkpoint of this run, from any attempt."""
    top = f"{ROOT}/{run_id}/"
    return key.startswith(top) and _CHECKPOINT.fullmatch(key, len(top)) is not None


def run_of_key(key: str) -> str | None:
    """Return the ID of the run that published `key`, or None for a key of another form."""
    found = _OF_RUN.fullmatch(key)
    return found[1] if found and {"", ".", ".."}.isdisjoint(key.split("/")) else None


def attempt_of(key: str) -> int:
    """Return the attempt that uploaded `key`, or 0 for a key of another form."""
    found = _ATTEMPT.match(key)
    return int(found[1]) if found else 0
