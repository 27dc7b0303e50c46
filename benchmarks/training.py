"""Measure the cost of the training process: start, events, checkpoints, memory.

    python -m benchmarks.training

The trainings are tiny: yolo11n from scratch on the CPU, 16 images of 64 x 64 pixels, 2 epochs. They show the overhead
of our training process, not the speed of a training.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))

from child_run import order_for
from drawn import draw

from benchmarks.figures import Figure, middle
from trainer.core.dataset import PreparedDataset, Task
from trainer.core.events import BatchProgress
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.training.supervisor.environment import child_environment, private_folder
from trainer.training.supervisor.process import ChildTrainer
from trainer.training.yolo import checkpoint_file
from trainer.training.yolo.checkpoint_file import Progress

REPEATS = 3


def first_batch(dataset: PreparedDataset, folder: Path, repeats: int, *, warm: bool) -> tuple[list[float], int]:
    """Return the seconds from the call of `train` to the first batch, and the memory of the largest process in MiB."""
    trainer = ChildTrainer(environment=os.environ, home=folder / "home", weights=folder / "weights", warm_start=warm)
    seconds, peak = [], 0
    for repeat in range(repeats):
        if warm:
            trainer.warm()
            _wait_until_idle()
        started, batches = time.monotonic(), []

        def on_event(event, started=started, batches=batches):  # noqa: ANN001, ANN202
            nonlocal peak
            if isinstance(event, BatchProgress):
                batches.append(time.monotonic() - started)
            peak = max([peak, *(p.memory_info().rss for p in psutil.Process().children(recursive=True))])

        order = order_for(dataset, folder / f"{warm}{repeat}", epochs=2)
        trainer.train(order, StopSignal(), on_event, lambda _line: None)
        seconds.append(batches[0])
    trainer.close()
    return seconds, peak >> 20


def cancel(dataset: PreparedDataset, folder: Path, repeats: int) -> list[float]:
    """Return the seconds from a cancel during the training until no process is left."""
    trainer = ChildTrainer(environment=os.environ, home=folder / "home", weights=folder / "weights")
    seconds = []
    for repeat in range(repeats):
        stop, stopped_at = StopSignal(), []

        def on_event(event, stop=stop, stopped_at=stopped_at):  # noqa: ANN001, ANN202
            if isinstance(event, BatchProgress) and not stopped_at:
                stopped_at.append(time.monotonic())
                stop.set(StopReason.CANCELED)

        try:
            trainer.train(order_for(dataset, folder / f"c{repeat}", epochs=50), stop, on_event, lambda _line: None)
        except Stopped:
            seconds.append(time.monotonic() - stopped_at[0])
    return seconds


def batch_callback(dataset: PreparedDataset, folder: Path, batches: int) -> float:
    """Return the microseconds that our callback adds to a batch, if the event pipe never blocks."""
    before = dict(os.environ)
    os.environ |= child_environment(before, private_folder(folder, folder), devices=())
    import torch

    from trainer.training.child.event_pipe import EventWriter
    from trainer.training.yolo.callbacks import Callbacks
    from trainer.training.yolo.progress_meter import ProgressMeter

    os.environ.clear()
    os.environ |= before
    writer = EventWriter(os.open(os.devnull, os.O_WRONLY), on_broken=lambda: None)
    meter = ProgressMeter(writer.send)
    callbacks = Callbacks(folder, dataset, meter, StopSignal(), writer.send, None)
    tloss = {name: torch.tensor(1.0) for name in ("box_loss", "cls_loss", "dfl_loss")}
    trainer = SimpleNamespace(batch_size=16, tloss=tloss, _get_memory=lambda: 0.0)
    meter.epoch_started(1, 100, 10**6)
    started = time.perf_counter()
    for _ in range(batches):
        callbacks.on_train_batch_end(trainer)
    return (time.perf_counter() - started) / batches * 1e6


def checkpoint(folder: Path, mebibytes: int) -> list[float]:
    """Return the milliseconds that a training waits while a checkpoint of this size is copied."""
    import zipfile

    state = folder / "last.pt"
    with zipfile.ZipFile(state, "w") as archive:
        archive.writestr("archive/data", os.urandom(mebibytes << 20))
    (folder / "results.csv").write_text("epoch\n")
    times = []
    for epoch in range(5):
        started = time.perf_counter()
        prepared = checkpoint_file.prepare(
            state, folder, Progress(epoch=epoch), {"results.csv": folder / "results.csv"}
        )
        times.append((time.perf_counter() - started) * 1000)
        checkpoint_file.commit(prepared, Progress(epoch=epoch))
    return times


def _wait_until_idle() -> None:
    """Wait until the prestarted process has imported its packages and uses no CPU time."""
    prestarted = max(psutil.Process().children(recursive=True), key=lambda process: process.create_time())
    before = -1.0
    while (now := prestarted.cpu_times().user) != before:
        before = now
        time.sleep(1.0)


def figures(*, tiny: bool) -> Iterator[Figure]:
    repeats = 1 if tiny else REPEATS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = draw(folder / "data", Task.DETECT)
        cold, memory = first_batch(dataset, folder, repeats, warm=False)
        warm, _ = first_batch(dataset, folder, repeats, warm=True)
        canceled = cancel(dataset, folder, repeats)
        small, large = (checkpoint(folder, size) for size in (26, 50 if tiny else 300))
        batch = batch_callback(dataset, folder, 1_000 if tiny else 200_000)
    yield Figure(
        what="time from the call of `train` to the first batch, with a prestarted process",
        target="≤ 2.5 s",
        measured=middle(warm),
        met=median(warm) <= 2.5,
        peer=f"{middle(cold)} without a prestarted process",
    )
    yield Figure(
        what="time from a cancel until no process is left",
        target="≤ 1 s",
        measured=middle(canceled),
        met=median(canceled) <= 1,
    )
    yield Figure(what="time of our callback per batch", target="≤ 20 µs", measured=f"{batch:.1f} µs", met=batch <= 20)
    yield Figure(
        what="time that the training waits while a checkpoint is copied",
        target="≤ 250 ms for 26 MiB",
        measured=middle(small, "ms", 0),
        met=median(small) <= 250,
        peer=f"{middle(large, 'ms', 0)} for a large checkpoint",
    )
    yield Figure(
        what="memory of the training process", target="≤ 1200 MiB", measured=f"{memory} MiB", met=memory <= 1200
    )


def main() -> None:
    for figure in figures(tiny="--tiny" in sys.argv):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
