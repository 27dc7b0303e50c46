"""Many downloads at once: bounded, counted, all or none."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeAlias

from trainer.core.events import Phase, TransferProgress
from trainer.core.stop import StopReason, StopSignal

Job: TypeAlias = Callable[[StopSignal], object]
OnTransfer: TypeAlias = Callable[[TransferProgress], None]
EVERY_SECONDS = 0.5
LINK_TRIES = 10


class Meter:
    """Counts files and bytes from all threads, and tells how far the download is: at its beginning and end, and at
    most twice a second between.
    """

    def __init__(self, on_event: OnTransfer, *, total_files: int, total_bytes: int = 0) -> None:
        self._on_event = on_event
        self._total_files = total_files
        self._total_bytes = total_bytes
        self._files = 0
        self._bytes = 0
        self._began = time.monotonic()
        self._told = self._began
        self._lock = threading.Lock()
        self._tell(always=total_files > 0)

    def count(self, moved: int) -> None:
        """Bytes moved, or minus those of a try that has to begin anew."""
        with self._lock:
            self._bytes += moved
            self._tell(always=False)

    def expect(self, more: int) -> None:
        """More bytes are going to come than was known before."""
        with self._lock:
            self._total_bytes += more

    def finish_file(self) -> None:
        with self._lock:
            self._files += 1
            self._tell(always=self._files == self._total_files)

    def _tell(self, *, always: bool) -> None:
        now = time.monotonic()
        if not always and now - self._told < EVERY_SECONDS:
            return
        self._told = now
        rate = self._bytes / max(now - self._began, 1e-3)
        left = self._total_bytes - self._bytes
        self._on_event(
            TransferProgress(
                phase=Phase.DOWNLOADING,
                files=self._files,
                total_files=self._total_files,
                bytes=self._bytes,
                total_bytes=self._total_bytes,
                rate=rate,
                eta_seconds=max(0.0, left / rate) if self._total_bytes and rate else None,
            ),
        )


class Every:
    """Does something each time that so many more bytes came."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self._step = step
        self._act = act
        self._since = 0

    def count(self, more: int) -> None:
        self._since += more
        if self._since > self._step:
            self._since = 0
            self._act()


def in_parallel(jobs: Sequence[Job], workers: int, stop: StopSignal) -> None:
    """Run all jobs, each with a stop signal that is also set when another job fails. Raises the first failure."""
    stop.raise_if_set()
    inner = stop.child()
    waiting = iter(jobs)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for job in waiting:  # shared: each job goes to the thread that is free first
                inner.raise_if_set()
                job(inner)
        except BaseException as error:
            failures.append(error)
            inner.set(StopReason.CANCELED)
            raise

    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(jobs)))) as pool:
        running = [pool.submit(work) for _ in range(min(workers, len(jobs)))]
        try:
            wait(running)
        except BaseException:
            inner.set(StopReason.CANCELED)
            raise
    if failures:
        raise failures[0]


def link_tree(links: Iterable[tuple[str, Path]], root: Path) -> None:
    """Give each file the second name `root`/relpath: a hard link, or a copy where that is impossible."""
    made: set[str] = set()
    for relpath, target in links:
        path = f"{root}/{relpath}"
        folder = path.rpartition("/")[0]
        if folder not in made:
            Path(folder).mkdir(parents=True, exist_ok=True)
            made.add(folder)
        try:
            _link(target, path)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, one without hard links, or too many of them
            shutil.copyfile(target, path)


def _link(target: Path, path: str) -> None:
    """Make a hard link, also when another run puts the same content in the place of `target` at this moment.

    link(2) finds the file first and links it afterwards: when a rename removed its last name in between, the answer is
    ENOENT, although there is a file of that name before and after.
    """
    for _ in range(LINK_TRIES - 1):
        try:
            os.link(target, path)
        except FileNotFoundError:
            continue
        return
    os.link(target, path)
