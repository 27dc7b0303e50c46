"""Run many downloads in parallel, and link files into a tree."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from trainer.core.stop import StopReason, StopSignal
from trainer.core.transfer import OnTransfer

LINK_TRIES = 10


@dataclass(frozen=True)
class Transfer:
    """One fetch: the folder for its files, its stop signal, and the receiver of its progress."""

    staging: Path
    stop: StopSignal
    on_event: OnTransfer


@dataclass
class EveryBytes:
    """Calls `act` each time more than `step` new bytes were counted."""

    step: int
    act: Callable[[], object]
    since: int = 0

    def count(self, more: int) -> None:
        self.since += more
        if self.since > self.step:
            self.since = 0
            self.act()


def in_parallel(jobs: Iterable[Callable[[StopSignal], object]], workers: int, stop: StopSignal) -> None:
    """Run all jobs, each with a stop signal that is also set when another job fails. Raises the first failure."""
    stop.raise_if_set()
    inner = stop.child()
    waiting, lock = iter(jobs), threading.Lock()
    failures: list[BaseException] = []

    def next_job() -> Callable[[StopSignal], object] | None:
        with lock:  # two threads cannot execute a generator at the same time
            return next(waiting, None)

    def work() -> None:
        try:
            while job := next_job():
                inner.raise_if_set()
                job(inner)
        except BaseException as error:
            failures.append(error)
            inner.set(StopReason.CANCELED)
            raise

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        running = [pool.submit(work) for _ in range(workers)]
        try:
            wait(running)
        except BaseException:
            inner.set(StopReason.CANCELED)
            raise
    if failures:
        raise failures[0]


def link_tree(links: Iterable[tuple[str, Path]], root: Path) -> None:
    """Hard-link each file as `root`/relpath, or copy it if hard links are impossible."""
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
        except FileExistsError:  # a copy would change the file that has the name
            if not target.samefile(path):  # a listing can have an object twice while it changes
                raise
        except OSError:  # another file system, a file system without hard links, or too many links
            shutil.copyfile(target, path)


def _link(target: Path, path: str) -> None:
    """Make a hard link, even if another run replaces `target` with the same content meanwhile.

    link(2) first looks up the file and then links it. If another run replaces the file in between, link(2) fails with
    ENOENT, although `target` always exists.
    """
    for _ in range(LINK_TRIES - 1):
        try:
            os.link(target, path)
        except FileNotFoundError:
            continue
        return
    os.link(target, path)
