"""Extract archives into the content cache. Each archive is extracted once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from trainer.core.errors import MachineFailed
from trainer.core.text import shown
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.decoder import Decoder, Room
from trainer.datasets.source.extraction import ROOM_STEP, Extract
from trainer.datasets.source.fetched_tree import FILES, LISTING, Fetched, read_tree
from trainer.datasets.source.transfer import EveryBytes, Transfer

Archive: TypeAlias = Callable[[], AbstractContextManager[Path]]


@dataclass(frozen=True)
class ArchiveTrees:
    """The extracted trees in the cache, by the identity of their archive."""

    cache: ContentCache
    decode: Decoder

    def get(self, identity: str) -> Fetched | None:
        """Return the complete tree of an archive, or None. A damaged tree is removed."""
        tree = self.cache.get_tree(_tree(identity))
        fetched = read_tree(tree) if tree is not None else None
        if tree is not None and fetched is None:
            self.cache.remove_tree(_tree(identity))
        return fetched

    def mark_in_use(self, user: Path, identity: str) -> None:
        """Keep the tree of an archive in the cache until the folder `user` is removed."""
        self.cache.mark_in_use(user, [_tree(identity)])

    def extracted(self, identity: str, transfer: Transfer, archive: Archive, name: str) -> Fetched:
        """Return the tree of an archive, marked as in use.

        `archive` returns a context with the archive file. It is called only if the cache does not have the tree.
        """
        self.mark_in_use(transfer.staging, identity)
        known = self.get(identity)
        if known is not None:
            return known
        with self.cache.temporary() as tree, on_this_disk(self.cache.root), archive() as file:
            self.cache.make_room(file.stat().st_size)
            (tree / FILES).mkdir(parents=True)
            (tree / LISTING).touch()  # the confined process can write into this file, but it can create no other file
            room = Room(make=self.cache.make_room, check=lambda: self.cache.require_free(0))
            job = Extract(archive=str(file), tree=str(tree), name=name)
            self.decode(job, transfer.stop, room)
            extracted = read_tree(tree)
            if extracted is None:
                raise MachineFailed(f"The files of archive {shown(name)} do not match their listing; requeue the run.")
            path = self.cache.put_tree(
                _tree(identity), tree, extracted.bytes, is_whole=lambda path: read_tree(path) is not None
            )
        self.cache.make_room(0)
        return replace(extracted, root=path / FILES)


def room_check(cache: ContentCache) -> EveryBytes:
    """Return a byte counter that regularly checks the free space on the disk of the cache."""
    return EveryBytes(ROOM_STEP, lambda: cache.require_free(0))


def _tree(identity: str) -> str:
    return f"tree\n{identity}"
