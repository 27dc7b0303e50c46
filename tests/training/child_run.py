"""Run the real training process and collect its events and output."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.core.dataset import PreparedDataset
from trainer.core.events import CheckpointSaved, Event
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.run_folder import OutputFolder
from trainer.training.supervisor.environment import child_environment, private_folder
from trainer.training.wire import SANDBOX, decode_event, decode_sandbox, encode_order, encode_stop

PROGRAMS = Path(__file__).parent / "programs"
STEMS = {"segment": "yolo11n-seg", "pose": "yolo11n-pose", "obb": "yolo11n-obb", "classify": "yolo11n-cls"}


@dataclass
class Run:
    """One training process, which trains in `folder`. `at` is the time of each event, in seconds since the training order was sent."""

    process: subprocess.Popen[bytes]
    folder: OutputFolder
    events: list[Event] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    output: str = ""
    missing: tuple[str, ...] | None = None  # the protections that the sandbox of the process does not have

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def newest(self) -> Path:
        """The newest checkpoint that the training reported."""
        return self.folder.checkpoint(self.of(CheckpointSaved)[-1].epoch)

    @property
    def last(self) -> Event:
        assert self.events, self.output
        return self.events[-1]


def order_for(dataset: PreparedDataset, run_dir: Path, *, model: Path | None = None, **changes) -> TrainingOrder:
    """Return the training order of a tiny training. `changes` are fields of the plan or of the training order."""
    of_order = {name: changes.pop(name) for name in ("resume", "last_reported_epoch", "setup") if name in changes}
    args = {"plots": False, "workers": 0, **changes.pop("args", {})}
    plan = TrainPlan(
        sources=("x",),
        model=Architecture(stem="yolo11n"),
        task=dataset.task,
        epochs=1,
        batch=8,
        imgsz=64,
        device=(),
        args=args,
    )
    stem = STEMS.get(dataset.task.value, "yolo11n")
    return TrainingOrder(
        plan=replace(plan, **changes),
        model=model or Path(f"{stem}.yaml"),
        dataset=dataset,
        run_dir=run_dir,
        **of_order,
    )


def run_child(
    order, home, *, program=None, on_event=lambda _event, _process: None, env=None, without=(), timeout=240.0
) -> Run:
    """Train in a new process until it exits. `on_event` may write commands to the stdin of the process.

    `env` is added to the environment of the process. The variables in `without` are removed from this environment.
    """
    home.mkdir(parents=True, exist_ok=True)
    folder = private_folder(home, home / "weights")
    environment = child_environment(dict(os.environ), folder, devices=()) | (env or {})
    environment = {name: value for name, value in environment.items() if name not in without}
    if program or without:
        # as for a prestarted process: imports before the sandbox is entered start no thread
        environment["OPENBLAS_NUM_THREADS"] = "1"
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    command = [str(PROGRAMS / program)] if program else ["-m", "trainer.training.child.main"]
    process = subprocess.Popen(
        [sys.executable, *command, "--events-fd", str(writing)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=[writing],
    )
    os.close(writing)
    run = Run(process, OutputFolder(order.run_dir))
    output = threading.Thread(target=lambda: setattr(run, "output", process.stdout.read().decode(errors="replace")))
    output.start()
    killer = threading.Timer(timeout, process.kill)
    killer.start()
    started = time.monotonic()
    process.stdin.write(encode_order(order))
    process.stdin.flush()
    with os.fdopen(reading, "rb") as lines:
        if environment.get(SANDBOX) != "0":
            run.missing = decode_sandbox(next(lines)).missing
        for line in lines:
            run.events.append(decode_event(line))
            run.at.append(time.monotonic() - started)
            on_event(run.events[-1], process)
    process.wait()
    killer.cancel()
    output.join()
    process.stdin.close()
    process.stdout.close()
    return run


def stop_at(reason, when):
    """Return a listener that requests a stop at the first event for which `when` is true."""
    asked = []

    def on_event(event, process):
        if not asked and when(event):
            asked.append(event)
            process.stdin.write(encode_stop(reason))
            process.stdin.flush()

    return on_event
