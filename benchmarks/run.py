"""Measure the overhead of the service for a training: `python -m benchmarks.run [--tiny] [--rounds 3]`.

The real service trains real models on the CPU, in turns with a plain script that gives Ultralytics the same arguments
in the same environment. `probe/` records when their batches end. Seconds are wall time unless marked as CPU. On a busy
machine, only the differences within one turn are meaningful.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.figures import Figure, middle
from tests.acceptance.service import Service
from trainer.core.job import RunRequest
from trainer.demo import draw_dataset
from trainer.jobs.sqlite import SqliteQueue
from trainer.training.supervisor.environment import child_environment, private_folder

PROBE = Path(__file__).parent / "probe"
MODEL = "yolo11n.yaml"
POLL = 0.2  # seconds
EPOCHS_BETWEEN = 3  # long enough to start the next spare process
ARGUMENTS = {"imgsz": 96, "batch": 16, "workers": 0, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size and the number of the trainings."""

    images: int
    epochs: int
    rounds: int
    cancels: int


FULL = Size(images=300, epochs=20, rounds=5, cancels=10)
TINY = Size(images=10, epochs=2, rounds=1, cancels=1)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training: start, end and the ends of its batches (Unix time), and its CPU seconds."""

    asked: float
    over: float
    batches: list[float]
    cpu: float = 0.0

    @property
    def until_first_batch(self) -> float:
        return self.batches[0] - self.asked

    @property
    def wall(self) -> float:
        return self.over - self.asked


class Bare:
    """Ultralytics alone, in the environment of our training process."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder, self._data = folder, data
        private = private_folder(folder / "bare-home", folder / "bare-home")
        self._environment = child_environment(os.environ, private, folder / "bare-home", devices=())
        self._environment["PYTHONPATH"] += os.pathsep + str(PROBE)
        self._count = 0

    def train(self, epochs: int, times: int = 1) -> list[Trained]:
        """Train `times` times in one process."""
        runs = [self._folder / f"bare-{self._count + n}" for n in range(times)]
        self._count += times
        orders = [
            {"model": MODEL, "data": str(self._data), "epochs": epochs, "save_dir": str(run), "device": "cpu", **ARGUMENTS}
            for run in runs
        ]  # fmt: skip
        began, before = time.time(), os.times()
        command = [sys.executable, "-m", "benchmarks.bare", json.dumps(orders)]
        done = subprocess.run(
            command, env=self._environment, cwd=self._data.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        over, after = time.time(), os.times()
        if done.returncode:
            raise RuntimeError(done.stderr[-4000:])
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        loading = [json.loads(line)["loading"] for line in done.stdout.splitlines() if line.startswith('{"loading"')]
        self.started = began
        return [
            Trained(asked=asked, over=over, batches=batches(run), cpu=cpu)
            for asked, run in zip(loading, runs, strict=True)
        ]


class Ours:
    """The service, idle and with a ready spare process before each measurement."""

    def __init__(self, service: Service, data: Path) -> None:
        self._service, self._data = service, data
        self.queue = SqliteQueue(service.home / "queue.db")
        self.process = psutil.Process(service.process.pid)

    def train(self, epochs: int, times: int = 1) -> list[Trained]:
        """Insert `times` runs at once, and wait until all are completed."""
        self.settle()
        before, asked = _cpu(self.process), time.time()
        ids = [self.insert(epochs) for _ in range(times)]
        over = [self._completed(run_id) for run_id in ids]
        cpu = _cpu(self.process) - before
        return [
            Trained(asked=asked, over=at, batches=batches(self.folder(run_id)), cpu=cpu)
            for at, run_id in zip(over, ids, strict=True)
        ]

    def insert(self, epochs: int) -> str:
        configuration = {"epochs": epochs, "device": "cpu", **ARGUMENTS}
        return self.queue.enqueue(RunRequest(data_yaml=str(self._data), base_model=MODEL, configuration=configuration))

    def folder(self, run_id: str) -> Path:
        return self._service.home / "runs" / f"train_{run_id}"

    def settle(self) -> None:
        """Wait until the spare process has imported everything and the service uses no processor time."""
        quiet = 0
        while quiet < 2:
            before = _cpu(self.process, living=True)
            time.sleep(1.0)
            quiet = quiet + 1 if _cpu(self.process, living=True) - before < 0.1 else 0

    def _completed(self, run_id: str) -> float:
        while (row := self.queue.get(run_id)) and row.status in ("queued", "running"):
            time.sleep(0.1)
        if row.status != "completed":
            raise RuntimeError(f"{row.status}: {row.error_message}")
        return time.time()


def _cpu(process: psutil.Process, *, living: bool = False) -> float:
    """Return the CPU seconds of a process and its dead children; with `living`, also of its living descendants."""
    times = [process.cpu_times()]
    if living:
        for child in process.children(recursive=True):
            try:
                times.append(child.cpu_times())
            except psutil.NoSuchProcess:
                continue  # from now on its parent counts it
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def batches(run_dir: Path) -> list[float]:
    """Return the end of each batch, in Unix time."""
    return [float(line.split()[0]) for line in (run_dir / ".batches").read_text().splitlines()]


@contextmanager
def both(folder: Path, size: Size) -> Iterator[tuple[Bare, Ours]]:
    data = draw_dataset(folder / "shapes", images=size.images)
    settings = {"POLL_INTERVAL": POLL, "CANCEL_CHECK_INTERVAL": 1, "PROGRESS_INTERVAL": 10, "HEARTBEAT_INTERVAL": 10}
    service = Service(folder / "home", WARM_START=1, LEASE_SECONDS=60, PYTHONPATH=PROBE, **settings).start()
    try:
        while not (folder / "home" / "queue.db").exists():
            time.sleep(0.05)
        yield Bare(folder, data), Ours(service, data)
    finally:
        service.stop()


def starts(bare: Bare, ours: Ours, rounds: int) -> Iterator[Figure]:
    """Measure two runs: the time from the order to the first batch, and between the runs."""
    bare.train(1)  # writes the label cache, as before a second training
    first: dict[str, list[float]] = {"bare": [], "ours": []}
    gap: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(rounds):
        for name, trainer in (("bare", bare), ("ours", ours)):
            one, two = trainer.train(EPOCHS_BETWEEN, times=2)
            first[name].append(one.until_first_batch)
            gap[name].append(two.batches[0] - one.batches[-1])
    added = [o - b - POLL for o, b in zip(first["ours"], first["bare"], strict=True)]
    yield Figure(
        what="insert → first batch, dataset there, worker idle",
        target="≤ poll + 1.0 s above bare",
        measured=f"{middle(first['ours'])}; {median(added):+.2f} s",
        peer=f"bare, model load → first batch: {middle(first['bare'])}",
        met=median(added) <= 1.0,
        why="the view of the dataset and the start of the training wait for a free core",
    )
    added = [o - b for o, b in zip(gap["ours"], gap["bare"], strict=True)]
    yield Figure(
        what="last batch of a run → first batch of the next queued one",
        target="≤ 2.0 s above bare",
        measured=f"{middle(gap['ours'])}; {median(added):+.2f} s",
        peer=f"bare, both in one process: {middle(gap['bare'])}",
        met=median(added) <= 2.0,
        why="without a free core, the upload and the warming of the next spare slow down the plots and the start",
    )


def whole(bare: Bare, ours: Ours, size: Size) -> Iterator[Figure]:
    """Measure a whole run, from insert to completion, and the whole plain script."""
    wall, cpu, training = [], [], []
    for turn in range(size.rounds):
        for trainer in (bare, ours) if turn % 2 else (ours, bare):
            (trained,) = trainer.train(size.epochs)
            if trainer is bare:
                theirs, their_wall = trained, trained.over - bare.started
            else:
                mine = trained
        wall.append(mine.wall / their_wall)
        cpu.append(mine.cpu / theirs.cpu)
        training.append((mine.batches[-1] - mine.batches[0]) / (theirs.batches[-1] - theirs.batches[0]))
    yield Figure(
        what=f"a whole run, {size.epochs} epochs on {size.images} images",
        target="≤ 1.03 of bare",
        measured=f"{middle(wall, 'x')}; CPU {middle(cpu, 'x')}",
        peer=f"first to last batch alone: {middle(training, 'x')}",
        met=median(wall) <= 1.03,
        why="without a free core, the warming of the next spare (3 s of processor) is part of it",
    )


def cancels(ours: Ours, count: int) -> Iterator[Figure]:
    seconds = []
    for _ in range(count):
        run_id = ours.insert(1000)
        noted = ours.folder(run_id) / ".batches"
        while not noted.exists() or not noted.read_text().endswith("\n"):
            time.sleep(0.05)
        child = psutil.Process(int(noted.read_text().split()[1]))
        asked = time.monotonic()
        ours.queue.cancel(run_id)
        child.wait()
        seconds.append(time.monotonic() - asked)
        while ours.queue.get(run_id).status != "canceled":
            time.sleep(0.05)
    yield Figure(
        what="cancel → process gone",
        target="≤ CANCEL_CHECK_INTERVAL (1 s) + 2 s",
        measured=f"{middle(seconds)}, the slowest of {count} counts",
        met=max(seconds) <= 3.0,
        why="a batch is finished first, and batches are slow here",
    )


def figures(*, tiny: bool) -> Iterator[Figure]:
    size = TINY if tiny else FULL
    with tempfile.TemporaryDirectory() as name, both(Path(name), size) as (bare, ours):
        yield from starts(bare, ours, size.rounds)
        yield from whole(bare, ours, size)
        yield from cancels(ours, size.cancels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="once, small: only to see that it works")
    for figure in figures(tiny=parser.parse_args().tiny):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
