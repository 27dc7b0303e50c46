from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.process.sandbox_host import sandbox_host
from trainer.core.dataset import PreparedDataset, Task
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopSignal
from trainer.training.supervisor.process import ChildTrainer
from trainer.training.supervisor.training_watch import TimeLimits

PROGRAMS = Path(__file__).parent / "programs"


def subreapers():
    """Return the first subreaper of each training. The first subreapers are children of this process."""
    return [child for child in psutil.Process().children() if is_subreaper(child)]


def second(subreaper):
    """Return the second subreaper, a child of the first. Its children are the program and adopted orphans."""
    deadline = time.monotonic() + 10
    while not subreaper.children() or not subreaper.children()[0].children():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return subreaper.children()[0]


def is_subreaper(process):
    try:
        command = process.cmdline()
        if not command:  # the process is in the middle of exec, or it is a zombie
            return process.status() != psutil.STATUS_ZOMBIE
        # between fork and exec, the process has the command line of this process
        return command == psutil.Process().cmdline() or any(part.endswith("subreaper.py") for part in command)
    except psutil.Error:
        return False  # the process has just ended


class Trained:
    """A training with one of the programs in `programs/`. It records every event and every line of output."""

    def __init__(self, tmp_path, trainer):
        self.trainer = trainer
        self.root = tmp_path / "dataset"
        self.root.mkdir(exist_ok=True)
        self.run_dir = tmp_path / "run"
        self.stop = StopSignal()
        self.events = []
        self.lines = []
        self.changed = threading.Condition()

    def behave(self, **options):
        (self.root / "behavior.json").write_text(json.dumps(options))
        return self

    def order(self, epochs=3, resume=None, last_reported_epoch=0, devices=(), names=("disc",), run_dir=None):
        run_dir = run_dir or self.run_dir
        run_dir.mkdir(exist_ok=True)
        plan = TrainPlan(
            sources=("/data",),
            model=Architecture(stem="yolo11n"),
            task=None,
            epochs=epochs,
            batch=4,
            imgsz=64,
            device=None,
        )
        dataset = PreparedDataset(
            root=self.root,
            data=self.root / "data.yaml",
            task=Task.DETECT,
            names=names,
            images={"train": 4},
            fingerprint="f",
        )
        return TrainingOrder(
            plan=plan,
            model=Path("yolo11n.yaml"),
            dataset=dataset,
            run_dir=run_dir,
            resume=resume,
            last_reported_epoch=last_reported_epoch,
            devices=devices,
        )

    def train(self, **order):
        return self.trainer.train(self.order(**order), self.stop, self.on_event, self.on_line)

    def on_event(self, event):
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def on_line(self, line):
        with self.changed:
            self.lines.append(line)
            self.changed.notify_all()

    def of(self, kind):
        return [event for event in self.events if event.kind == kind]

    def wait_for(self, condition):
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self), timeout=10)

    def when(self, condition, act):
        """Call `act` from another thread as soon as `condition(self)` is true."""

        def wait():
            self.wait_for(condition)
            act()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")  # a short path, because tmp_path is too long for sockets


@pytest.fixture
def program(tmp_path, home):
    """Return a function that makes a `Trained` for the program `name`."""
    made = []

    def make(name, *arguments, environment=None, warm_start=False, **limits):
        trainer = ChildTrainer(
            environment=dict(os.environ) if environment is None else environment,
            home=home,
            weights=tmp_path / "models",
            program=(sys.executable, str(PROGRAMS / f"{name}.py"), *arguments),
            limits=TimeLimits(
                **(
                    {"grace": 0.3, "shutdown": limits.get("grace", 0.3), "starting": 10, "stall": 10, "exit": 0.5}
                    | limits
                )
            ),
            warm_start=warm_start,
        )
        made.append(trainer)
        return Trained(tmp_path, trainer)

    yield make
    for trainer in made:
        trainer.close()


@pytest.fixture
def host(tmp_path, home):
    """Return a host for tests of the sandbox."""
    return sandbox_host(tmp_path, home)


@pytest.fixture
def leak_check():
    """Check that the test leaves no thread, descriptor or child process."""
    me = psutil.Process()
    before = (threading.active_count(), me.num_fds())
    yield
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and (threading.active_count(), me.num_fds()) != before:
        time.sleep(0.02)
    assert (threading.active_count(), me.num_fds()) == before
    assert subreapers() == []


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids, seconds=2.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.01)
    return not any(map(alive, pids))


def wait_until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
