"""The arguments of Ultralytics' `train`, for a new training and for a resumed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import RANK

from trainer.core.ports import TrainingOrder
from trainer.core.resumption import CHANGEABLE, DEFAULTS, Setup, are_comparable
from trainer.training.yolo.checkpoint_file import Progress


def for_start(order: TrainingOrder, batch: float) -> dict[str, Any]:
    """Return the arguments of a new training."""
    plan = order.plan
    # these arguments are set, because a .pt file contains its own imgsz, data, task and single_cls
    return {
        "single_cls": False,
        **plan.args,
        "task": order.dataset.task.value,
        "epochs": plan.epochs,
        "imgsz": plan.imgsz,
        "batch": batch,
        "resume": False,
        "save": True,
        "exist_ok": True,
        **paths_and_device(order),
    }


def for_resume(order: TrainingOrder, checkpoint: Path, batch: float | None) -> dict[str, Any]:
    """Return the arguments of a resumed training. The other arguments are in the checkpoint, also `batch` if None."""
    workers = {"workers": order.plan.args["workers"]} if "workers" in order.plan.args else {}
    return {"resume": str(checkpoint), **workers, **({"batch": batch} if batch else {}), **paths_and_device(order)}


def paths_and_device(order: TrainingOrder) -> dict[str, Any]:
    """Return the arguments for the dataset, the run folder and the device."""
    return {"data": str(order.dataset.data), "save_dir": str(order.run_dir), "device": _device(order)}


def batch_to_resume(order: TrainingOrder, trained: Progress | None) -> float | None:
    """Return the batch size of a resumed training, or None if it is unknown.

    If the batch size in the row was edited, it is used. Otherwise, the batch size of the checkpoint is used.
    """
    if trained is None:
        return None
    before, now = Setup.from_json(trained.setup), Setup.from_json(order.setup)
    is_edited = before and now and before.settings.get("batch") != now.settings.get("batch")
    return order.plan.batch if is_edited else trained.batch


def with_changes(trainer: Any, order: TrainingOrder, trained: Progress) -> Any:
    """Return a subclass of the class `trainer` that resumes a training with the changed settings of the row.

    Ultralytics itself accepts only some settings as arguments of a resumed training, and ignores the epochs.
    """
    before, now = Setup.from_json(trained.setup), Setup.from_json(order.setup)
    if before is None or now is None:
        return trainer
    plan, keeps_best = order.plan, are_comparable(before, now)
    values = {name: plan.args.get(name, DEFAULTS[name]) for name in CHANGEABLE - {"epochs", "batch", "imgsz"}}
    values["imgsz"] = plan.imgsz
    if values["time"] is None:  # with a time budget, Ultralytics computes the epochs
        values["epochs"] = plan.epochs

    class Resumed(trainer):  # type: ignore[misc]
        def check_resume(self, overrides: dict[str, Any]) -> None:
            super().check_resume(overrides)
            for name, value in values.items():
                setattr(self.args, name, value)

        def _load_checkpoint_state(self, state: dict[str, Any]) -> None:
            super()._load_checkpoint_state(state)
            # Ultralytics also calls this after an epoch diverged; then `state` is from this training
            if not keeps_best and state["epoch"] < trained.epoch:
                self.best_fitness, self.stopper.best_fitness, self.stopper.best_epoch = None, 0.0, trained.epoch

    return Resumed


def _device(order: TrainingOrder) -> str:
    """Return the devices as indices within CUDA_VISIBLE_DEVICES. A rank gets all devices and uses its own device."""
    if RANK != -1:
        return ",".join(str(index) for index in range(len(order.devices)))
    return "0" if order.devices else "cpu"
