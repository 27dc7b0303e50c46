"""The steps after a training: validation on the test split, predictions, exports."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ultralytics import YOLO

from trainer.core.dataset import Task
from trainer.core.job import JsonObject
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopSignal
from trainer.training.yolo import report

# name of the step, and the function that returns its part of the report
Step: TypeAlias = tuple[str, Callable[[], JsonObject]]


@dataclass
class PostTraining:
    """The steps that a training order requests. `validate(split, folder)` validates best.pt on a split."""

    order: TrainingOrder
    weights: Path
    validate: Callable[[str, Path], Any]
    stop: StopSignal
    exports: dict[str, str] = field(default_factory=dict)  # format → file

    def steps(self) -> list[Step]:
        """Return the steps, the most useful first."""
        plan = self.order.plan
        steps: list[Step] = []
        if self.order.dataset.images.get("test"):
            steps.append(("validation on the test split", self._test))
        if plan.predictions:
            steps.append(("predictions", self._predict))
        return steps + [(f"export to {name}", partial(self._export, name)) for name in plan.exports]

    def _test(self) -> JsonObject:
        metrics = self.validate("test", self.order.run_dir / "test")
        return {"test": report.validation(metrics, self.order.dataset.task)}

    def _export(self, name: str) -> JsonObject:
        self.stop.raise_if_set()
        # TensorRT builds an engine only on a GPU; other formats are exported on the CPU, so that they run without a GPU
        device = "0" if name == "engine" else "cpu"
        path = Path(YOLO(str(self.weights)).export(format=name, imgsz=self.order.plan.imgsz, device=device))
        self.exports[name] = path.name
        return {"exports": dict(self.exports)}

    def _predict(self) -> JsonObject:
        path = self.order.run_dir / "predictions.jsonl"
        count = 0
        model = YOLO(str(self.weights))
        with path.open("w") as file:
            for result in model.predict(
                source=str(self._validation_images()),
                stream=True,
                batch=16,
                imgsz=self.order.plan.imgsz,
                save=False,
                verbose=False,
                project=str(self.order.run_dir),
                device="0" if self.order.devices else "cpu",
            ):
                self.stop.raise_if_set()
                file.write(json.dumps(_prediction(result)) + "\n")
                count += 1
        return {"predictions": {"file": path.name, "images": count}}

    def _validation_images(self) -> Path:
        """Return the folder of the validation images, or for classification a text file that lists them."""
        root = self.order.dataset.root
        if self.order.dataset.task is not Task.CLASSIFY:
            return root / "images" / "val"
        path = Path(tempfile.mkdtemp()) / "val_images.txt"
        path.write_text("".join(f"{image}\n" for image in sorted((root / "val").glob("*/*"))))
        return path


def _prediction(result: Any) -> JsonObject:
    height, width = result.orig_shape
    predictions = result.summary(decimals=4)
    return {"image": Path(result.path).name, "width": width, "height": height, "predictions": predictions}
