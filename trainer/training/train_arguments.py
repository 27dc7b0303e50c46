"""What Ultralytics' `train` is called with, for a new training and for one that is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import RANK

from trainer.core.ports import TrainingOrder
from trainer.core.resumption import CHANGEABLE, DEFAULTS, Setup, are_comparable
from trainer.training.yolo.checkpoint_file import Progress


def to_begin(order: TrainingOrder, batch: float) -> dict[str, Any]:
    """The arguments of a new training."""
    plan = order.plan
    # a .pt file's own imgsz, data, task and single_cls would count if we were silent about them
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
        **surroundings(order),
    }


def to_resume(order: TrainingOrder, state: Path, batch: float | None) -> dict[str, Any]:
    """What a resumed training does differently whatever its checkpoint says; None leaves the batch to that."""
    workers = {"workers": order.plan.args["workers"]} if "workers" in order.plan.args else {}
    return {"resume": str(state), **workers, **({"batch": batch} if batch else {}), **surroundings(order)}


def surroundings(order: TrainingOrder) -> dict[str, Any]:
    """Where the training's data is, where it writes, and what it runs on."""
    return {"data": str(order.dataset.data), "save_dir": str(order.run_dir), "device": _device(order)}


def batch_to_resume(order: TrainingOrder, trained: Progress | None) -> float | None:
    """The batch that the checkpoint was trained with, or another one that the row asks for since; None if unknown."""
    if trained is None:
        return None
    before, now = Setup.from_json(trained.setup), Setup.from_json(order.setup)
    is_other = before and now and before.settings.get("batch") != now.settings.get("batch")
    return order.plan.batch if is_other else trained.batch


def taking_changes(trainer: Any, order: TrainingOrder, trained: Progress) -> Any:
    """A class of trainers whose resumed training has the row's values for all that it can change.

    Ultralytics would take some of them as arguments, and would ignore the epochs.
    """
    before, now = Setup.from_json(trained.setup), Setup.from_json(order.setup)
    if before is None or now is None:
        return trainer
    plan, keeps_best = order.plan, are_comparable(before, now)
    values = {name: plan.args.get(name, DEFAULTS[name]) for name in CHANGEABLE - {"epochs", "batch", "imgsz"}}
    values["imgsz"] = plan.imgsz
    if values["time"] is None:  # else the training computes its epochs
        values["epochs"] = plan.epochs

    class Resumed(trainer):  # type: ignore[misc]
        def check_resume(self, overrides: dict[str, Any]) -> None:
            super().check_resume(overrides)
            for name, value in values.items():
                setattr(self.args, name, value)

        def _load_checkpoint_state(self, state: dict[str, Any]) -> None:
            super()._load_checkpoint_state(state)
            # called once more, with an epoch of this training, where one diverges
            if not keeps_best and state["epoch"] < trained.epoch:
                self.best_fitness, self.stopper.best_fitness, self.stopper.best_epoch = None, 0.0, trained.epoch

    return Resumed


def _device(order: TrainingOrder) -> str:
    """Counted within CUDA_VISIBLE_DEVICES; a rank names all, and takes its own."""
    if RANK != -1:
        return ",".join(str(index) for index in range(len(order.devices)))
    return "0" if order.devices else "cpu"
