"""A host for tests of the sandbox, and snippets of code to run in the sandbox."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.core.dataset import PreparedDataset, Task
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.sandbox import private_network
from trainer.training.supervisor.environment import child_environment, private_folder
from trainer.training.wire import encode_order

PROGRAM = Path(__file__).parent / "programs" / "runs_code_in_sandbox.py"
PROJECT = Path(__file__).parents[2]
LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1)  # version of Landlock; negative if unavailable
needs_landlock = pytest.mark.skipif(LANDLOCK < 1, reason="this kernel has no Landlock")


@dataclass
class SandboxHost:
    """A host with the folders of a run, and other files beside them."""

    root: Path
    order: TrainingOrder
    environment: dict[str, str]
    before: tuple[str, ...] = ()  # a command that starts the program

    def execute(self, *snippets, order=None, has_network=True):
        order = order or self.order
        has_network = has_network and len(order.devices) > 1
        network = [sys.executable, "-I", "-S", private_network.__file__] if has_network else []
        done = subprocess.run(
            [*self.before, *network, sys.executable, str(PROGRAM)],
            input=encode_order(order) + json.dumps(snippets).encode(),
            env=self.environment, stdout=subprocess.PIPE, check=True, timeout=30,
        )  # fmt: skip
        return json.loads(done.stdout)

    def results_of(self, snippets, **order):
        results = self.execute(*snippets, **order)
        assert not results["missing"]
        return set(results["results"].values())


def order_for(root, **changes):
    dataset = PreparedDataset(
        root=root / "view",
        data=root / "view" / "data.yaml",
        task=Task.DETECT,
        names=("disc",),
        images={"train": 4},
        fingerprint="f",
        readable=(root / "images_of_user", root / "elsewhere"),
    )
    plan = TrainPlan(
        sources=("/data",),
        model=Architecture(stem="yolo11n"),
        task=None,
        epochs=1,
        batch=4,
        imgsz=64,
        device=None,
    )
    order = {
        "plan": plan,
        "model": root / "models" / "mine.pt",
        "dataset": dataset,
        "run_dir": root / "runs" / "train_1",
    }
    return TrainingOrder(**order | changes)


def reading(path):
    return f"open({str(path)!r}).close()"


def writing(path):
    return f"open({str(path)!r}, 'w').close()"


def sandbox_host(root, home):
    """Create the files and return the host."""
    for name in (
        "view/data.yaml", "view/images/train/0.png", "models/mine.pt", "models/other.pt", "runs/train_2/best.pt",
        "queue.db", ".env", "downloads/epoch-3.pt", "images_of_user/1.png", "elsewhere/2.png", "other_user/3.png",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("content")
    (root / "view/images/train/1.png").symlink_to(root / "images_of_user" / "1.png")
    (root / "images_of_user/2.png").symlink_to(root / "elsewhere" / "2.png")
    (root / "view/images/train/2.png").symlink_to(root / "images_of_user" / "2.png")
    folder = private_folder(home, root / "models")
    environment = child_environment(dict(os.environ), folder, devices=())
    return SandboxHost(root, order_for(root), environment)
