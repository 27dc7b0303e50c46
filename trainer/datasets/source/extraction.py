"""The job that extracts an archive into a tree of the content cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.core.stop import StopSignal
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.decoder import Access, Done, Room
from trainer.datasets.source.archive import extract
from trainer.datasets.source.fetched_tree import FILES, LISTING, write_listing
from trainer.datasets.source.manifest import wanted
from trainer.datasets.source.transfer import EveryBytes
from trainer.disk.durable import sync_below

ROOM_STEP = 64 << 20  # bytes written between two checks of the free space; the final size can be unknown
SYNC_STEP = 1 << 30  # extracted bytes between two syncs; a stop signal takes effect after at most one sync


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Extract the archive into the folder `tree`/FILES, and write `tree`/LISTING. Both exist and are empty.

    `name` is the name of the archive in messages.
    """

    archive: str
    tree: str
    name: str

    @property
    def access(self) -> Access:
        return Access(read=(self.archive,), fill=(f"{self.tree}/{FILES}", f"{self.tree}/{LISTING}"))

    def run(self, stop: StopSignal, room: Room) -> Done:
        tree = Path(self.tree)
        checks = EveryBytes(ROOM_STEP, room.check), EveryBytes(SYNC_STEP, lambda: sync_below(tree / FILES))

        def count(more: int) -> None:
            for check in checks:
                check.count(more)

        with on_this_disk(tree):
            work = extract(
                Path(self.archive),
                tree / FILES,
                stop,
                wanted=wanted,
                name=self.name,
                on_total=room.make,
                on_bytes=count,
            )
            write_listing(tree, work.report.findings)
        return Done()
