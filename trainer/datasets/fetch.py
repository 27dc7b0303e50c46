"""From a reference to a read-only source tree on local disk, complete or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from trainer.core.dataset import DatasetRef, Finding
from trainer.core.events import TransferProgress
from trainer.core.stop import StopSignal

OnTransfer: TypeAlias = Callable[[TransferProgress], None]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source tree. `relpath` uses `/`; `identity` changes when the content does."""

    relpath: str
    path: Path
    bytes: int
    identity: str


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A source tree that is complete on local disk. Nobody may write into it.

    `entry` is what the reference named (a YAML, an annotations file), relative to `root`; None for a folder or an
    archive: the recognisers look for it then. `files` are those that a dataset can consist of (images, .txt, YAML,
    JSON) below `root`, sorted by name; for a YAML that names folders, only those folders and the files beside it.
    `identity` is a sha-256 over names, sizes and identities of `files`. When `is_private`, the tree is ours (cache or
    staging) and may be hard-linked; otherwise it is the user's own folder. A user's YAML may name folders outside
    `root`: ask `Roots.admit` for those.
    """

    root: Path
    entry: Path | None
    files: tuple[SourceFile, ...]
    identity: str
    is_private: bool
    findings: tuple[Finding, ...] = ()


class Fetcher:
    """Brings the bytes of a dataset to local disk, through the content cache."""

    def fetch(self, ref: DatasetRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        """The dataset behind `ref`, complete on disk.

        `staging` is a folder that does not exist yet, on the file system of the dataset root and best inside the
        run's view. What the tree needs in the cache is kept there as long as the folder `staging` exists, so remove
        it when the run's view goes, not before.
        Raises `DatasetError` (or `ObjectMissing`), `Unavailable`, `Misconfigured`, `MachineFailed` or `Stopped`.
        """
        raise NotImplementedError

    def prefetch(self, ref: DatasetRef, stop: StopSignal) -> None:
        """Bring what `fetch` would download into the cache. Raises what `fetch` raises."""
        raise NotImplementedError
