"""Helpers for the tests of object stores."""

from __future__ import annotations

from pathlib import Path

from trainer.core.dataset import ObjectRef
from trainer.core.ports import ObjectStore
from trainer.core.stop import StopSignal


def ref_to(key: str) -> ObjectRef:
    return ObjectRef(bucket="data", key=key)


def fetch(store: ObjectStore, ref: ObjectRef, path: Path) -> bytes:
    store.download(ref, path, StopSignal())
    return path.read_bytes()
