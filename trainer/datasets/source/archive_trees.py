"""Extract archives into the content cache. Each archive is extracted once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from trainer.core.errors import Unavailable
from trainer.core.text import shown
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.source.archive import extract
from trainer.datasets.source.fetched_tree import FILES, Fetched, read_tree, write_listing
from trainer.datasets.source.manifest import wanted
from trainer.datasets.source.transfer import EveryBytes, Transfer
from trainer.disk.durable import sync_below

ROOM_STEP = 64 << 20  # bytes written between two checks of the free space; the final size can be unknown
SYNC_STEP = 1 << 30  # extracted bytes between two syncs; a stop signal takes effect after at most one sync

Archive: TypeAlias = Callable[[], AbstractContextManager[Path]]


@dataclass(frozen=True)
class ArchiveTrees:
    """The extracted trees in the cache, by the identity of their archive."""

    cache: ContentCache

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
            extracted = extract(
                file,
                tree / FILES,
                transfer.stop,
                wanted=wanted,
                name=name,
                on_total=self.cache.make_room,
                on_bytes=self._growth_checks(tree),
            )
            write_listing(tree, extracted.report.findings)
            self.cache.put_tree(
                _tree(identity), tree, extracted.extracted_bytes, is_whole=lambda path: read_tree(path) is not None
            )
        self.cache.make_room(0)
        made = self.get(identity)
        if made is None:
            raise Unavailable(f"the cached files of {shown(name)} were damaged or removed")
        return made

    def _growth_checks(self, tree: Path) -> Callable[[int], None]:
        """Return a function that counts the bytes written into the tree, checks the free space, and syncs the tree."""
        room, unsynced = room_check(self.cache), EveryBytes(SYNC_STEP, lambda: sync_below(tree))

        def count(more: int) -> None:
            room.count(more)
            unsynced.count(more)

        return count


def room_check(cache: ContentCache) -> EveryBytes:
    """Return a byte counter that regularly checks the free space on the disk of the cache."""
    return EveryBytes(ROOM_STEP, lambda: cache.require_free(0))


def _tree(identity: str) -> str:
    return f"tree\n{identity}"
