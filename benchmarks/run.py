"""Measure the overhead of the service for a training: `python -m benchmarks.run [--tiny]`.

The service and the baseline alternately train real models on the CPU. The baseline is a plain script that gives
Ultralytics the same arguments in the same environment. `probe/` records the end time of each batch. Seconds are wall
time unless marked as CPU. On a busy host, only the differences between neighboring measurements are meaningful.
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
POLL = 0.2  # seconds between two polls of the service
EPOCHS_BETWEEN = 3  # enough time for the service to start the next prestarted process
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
    """One training: its start and end and the end of each batch (Unix time), and its CPU seconds."""

    requested: float
    ended: float
    batches: list[float]
    cpu: float = 0.0

    @property
    def until_first_batch(self) -> float:
        return self.batches[0] - self.requested

    @property
    def wall(self) -> float:
        return self.ended - self.requested


class Baseline:
    """A plain script with Ultralytics, in the environment of our training process."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder, self._data = folder, data
        private = private_folder(folder / "baseline-home", folder / "baseline-home")
        self._environment = child_environment(os.environ, private, devices=())
        self._environment["PYTHONPATH"] += os.pathsep + str(PROBE)
        self._count = 0

    def train(self, epochs: int, times: int = 1) -> list[Trained]:
        """Train `times` times in one process."""
        runs = [self._folder / f"baseline-{self._count + n}" for n in range(times)]
        self._count += times
        arguments = [
            {"model": MODEL, "data": str(self._data), "epochs": epochs, "save_dir": str(run), "device": "cpu", **ARGUMENTS}
            for run in runs
        ]  # fmt: skip
        started, before = time.time(), os.times()
        command = [sys.executable, "-m", "benchmarks.baseline", json.dumps(arguments)]
        done = subprocess.run(
            command, env=self._environment, cwd=self._data.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        ended, after = time.time(), os.times()
        if done.returncode:
            raise RuntimeError(done.stderr[-4000:])
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        loading = [json.loads(line)["loading"] for line in done.stdout.splitlines() if line.startswith('{"loading"')]
        self.started = started
        return [
            Trained(requested=requested, ended=ended, batches=batches(run), cpu=cpu)
            for requested, run in zip(loading, runs, strict=True)
        ]


class OurService:
    """The service. Before each call of `train`, the service is idle and has a prestarted process."""

    def __init__(self, service: Service, data: Path) -> None:
        self._service, self._data = service, data
        self.queue = SqliteQueue(service.home / "queue.db")
        self.process = psutil.Process(service.process.pid)

    def train(self, epochs: int, times: int = 1) -> list[Trained]:
        """Insert `times` runs at once, and wait until all are completed."""
        self.wait_until_idle()
        before, requested = _cpu(self.process), time.time()
        ids = [self.insert(epochs) for _ in range(times)]
        ended = [self._completed(run_id) for run_id in ids]
        cpu = _cpu(self.process) - before
        return [
            Trained(requested=requested, ended=at, batches=batches(self.folder(run_id)), cpu=cpu)
            for at, run_id in zip(ended, ids, strict=True)
        ]

    def insert(self, epochs: int) -> str:
        configuration = {"epochs": epochs, "device": "cpu", **ARGUMENTS}
        return self.queue.enqueue(RunRequest(data_yaml=str(self._data), base_model=MODEL, configuration=configuration))

    def folder(self, run_id: str) -> Path:
        return self._service.home / "runs" / f"train_{run_id}" / "output"

    def wait_until_idle(self) -> None:
        """Wait until the prestarted process has imported its packages and the service uses almost no CPU time."""
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
    """Return the CPU seconds of a process and its ended children. `living` adds its living descendants."""
    times = [process.cpu_times()]
    if living:
        for child in process.children(recursive=True):
            try:
                times.append(child.cpu_times())
            except psutil.NoSuchProcess:
                continue  # the child has ended, and the times of its parent include its CPU time
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def batches(run_dir: Path) -> list[float]:
    """Return the end time of each batch, in Unix time."""
    return [float(line.split()[0]) for line in (run_dir / ".batches").read_text().splitlines()]


@contextmanager
def both(folder: Path, size: Size) -> Iterator[tuple[Baseline, OurService]]:
    data = draw_dataset(folder / "shapes", images=size.images)
    settings = {"POLL_INTERVAL": POLL, "CANCEL_CHECK_INTERVAL": 1, "PROGRESS_INTERVAL": 10, "HEARTBEAT_INTERVAL": 10}
    service = Service(folder / "home", WARM_START=1, LEASE_SECONDS=60, PYTHONPATH=PROBE, **settings).start()
    try:
        while not (folder / "home" / "queue.db").exists():
            time.sleep(0.05)
        yield Baseline(folder, data), OurService(service, data)
    finally:
        service.stop()


def starts(baseline: Baseline, service: OurService, rounds: int) -> Iterator[Figure]:
    """Measure the time from the insert of a run to its first batch, and the time between two runs."""
    baseline.train(1)  # writes the label cache, which all measured trainings use
    first: dict[str, list[float]] = {"baseline": [], "service": []}
    gap: dict[str, list[float]] = {"baseline": [], "service": []}
    for _ in range(rounds):
        for name, trainer in (("baseline", baseline), ("service", service)):
            one, two = trainer.train(EPOCHS_BETWEEN, times=2)
            first[name].append(one.until_first_batch)
            gap[name].append(two.batches[0] - one.batches[-1])
    added = [ours - theirs - POLL for ours, theirs in zip(first["service"], first["baseline"], strict=True)]
    yield Figure(
        what="time from insert to first batch (dataset in the cache, worker idle)",
        target="≤ baseline + poll interval + 1.0 s",
        measured=f"{middle(first['service'])}; {median(added):+.2f} s compared with baseline + poll interval",
        peer=f"baseline, from model load to first batch: {middle(first['baseline'])}",
        met=median(added) <= 1.0,
        why="without a free core, the view of the dataset and the start of the training take longer",
    )
    added = [ours - theirs for ours, theirs in zip(gap["service"], gap["baseline"], strict=True)]
    yield Figure(
        what="time from the last batch of a run to the first batch of the next queued run",
        target="≤ baseline + 2.0 s",
        measured=f"{middle(gap['service'])}; {median(added):+.2f} s compared with the baseline",
        peer=f"baseline, both trainings in one process: {middle(gap['baseline'])}",
        met=median(added) <= 2.0,
        why="without a free core, the upload and the start of the next prestarted process slow down the next run",
    )


def whole(baseline: Baseline, service: OurService, size: Size) -> Iterator[Figure]:
    """Compare the time of a whole run, from insert to completion, with the time of the whole plain script."""
    wall, cpu, training = [], [], []
    for turn in range(size.rounds):
        for trainer in (baseline, service) if turn % 2 else (service, baseline):
            (trained,) = trainer.train(size.epochs)
            if trainer is baseline:
                theirs, their_wall = trained, trained.ended - baseline.started
            else:
                ours = trained
        wall.append(ours.wall / their_wall)
        cpu.append(ours.cpu / theirs.cpu)
        training.append((ours.batches[-1] - ours.batches[0]) / (theirs.batches[-1] - theirs.batches[0]))
    yield Figure(
        what=f"time of a whole run, {size.epochs} epochs on {size.images} images",
        target="≤ 1.03 x the baseline",
        measured=f"{middle(wall, 'x')}; CPU time {middle(cpu, 'x')}",
        peer=f"only from the first to the last batch: {middle(training, 'x')}",
        met=median(wall) <= 1.03,
        why="without a free core, the start of the next prestarted process (3 s of CPU) slows down the run",
    )


def cancels(service: OurService, count: int) -> Iterator[Figure]:
    seconds = []
    for _ in range(count):
        run_id = service.insert(1000)
        batch_file = service.folder(run_id) / ".batches"
        while not batch_file.exists() or not batch_file.read_text().endswith("\n"):
            time.sleep(0.05)
        child = psutil.Process(int(batch_file.read_text().split()[1]))
        canceled = time.monotonic()
        service.queue.cancel(run_id)
        child.wait()
        seconds.append(time.monotonic() - canceled)
        while service.queue.get(run_id).status != "canceled":
            time.sleep(0.05)
    yield Figure(
        what="time from a cancel to the end of the training process",
        target="≤ CANCEL_CHECK_INTERVAL (1 s) + 2 s",
        measured=f"{middle(seconds)}; the slowest of {count} must meet the target",
        met=max(seconds) <= 3.0,
        why="the current batch is finished first, and batches are slow on this host",
    )


def figures(*, tiny: bool) -> Iterator[Figure]:
    size = TINY if tiny else FULL
    with tempfile.TemporaryDirectory() as name, both(Path(name), size) as (baseline, service):
        yield from starts(baseline, service, size.rounds)
        yield from whole(baseline, service, size)
        yield from cancels(service, size.cancels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    for figure in figures(tiny=parser.parse_args().tiny):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
