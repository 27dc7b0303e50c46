"""The order for a training process that tests its host: it imports the libraries, enters the sandbox and uses the GPUs.

No code of a run and no file that a run chose is part of this test, so the supervisor can believe the result.
"""

from __future__ import annotations

from pathlib import Path

from trainer.core.dataset import PreparedDataset, Task
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder


def host_test(folder: Path, devices: tuple[int, ...]) -> TrainingOrder:
    """Return the order of a test of the GPUs `devices`. `folder` is a private folder of the process."""
    plan = TrainPlan(
        sources=(), model=Architecture(stem="yolo11n"), task=None, epochs=1, batch=1, imgsz=64, device=devices
    )
    dataset = PreparedDataset(
        root=folder, data=folder / "data.yaml", task=Task.DETECT, names=(), images={}, fingerprint=""
    )
    return TrainingOrder(
        plan=plan, model=folder / "none.yaml", dataset=dataset, run_dir=folder, devices=devices, is_test=True
    )
