"""The steps after a training: validation on the test split, predictions, exports."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics import YOLO
from ultralytics.data.utils import check_cls_dataset, check_det_dataset

from trainer.core.dataset import Task
from trainer.core.job import JsonObject
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopSignal
from trainer.training.yolo import report

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step; `do` returns what it adds to the report."""

    name: str
    do: Callable[[], JsonObject]


class PostTraining:
    """The steps that an order asks for. `validate(split, folder)` validates best.pt on a split."""

    def __init__(
        self,
        order: TrainingOrder,
        weights: Path,
        validate: Callable[[str, Path], Any],
        stop: StopSignal,
    ) -> None:
        self._order = order
        self._weights = weights
        self._validate = validate
        self._stop = stop
        self._exports: dict[str, str] = {}

    def steps(self) -> tuple[Step, ...]:
        """Return the steps, the most useful first."""
        plan = self._order.plan
        has_test = bool(self._order.dataset.images.get("test"))
        exports = [Step(name=f"export to {name}", do=self._exporting(name)) for name in plan.exports]
        return (
            *([Step(name="validation on the test split", do=self._test)] if has_test else []),
            *([Step(name="predictions", do=self._predict)] if plan.predictions else []),
            *exports,
        )

    def _test(self) -> JsonObject:
        metrics = self._validate("test", self._order.run_dir / "test")
        return {"test": report.validation(metrics, self._order.dataset.task)}

    def _exporting(self, name: str) -> Callable[[], JsonObject]:
        def export() -> JsonObject:
            self._stop.raise_if_set()
            # a TensorRT engine must be built on its GPU; other formats exported on a GPU would need that GPU
            device = "0" if name == "engine" else "cpu"
            path = Path(YOLO(str(self._weights)).export(format=name, imgsz=self._order.plan.imgsz, device=device))
            self._exports[name] = path.name
            return {"exports": dict(self._exports)}

        return export

    def _predict(self) -> JsonObject:
        path = self._order.run_dir / PREDICTIONS
        count = 0
        model = YOLO(str(self._weights))
        with path.open("w") as file:
            for result in model.predict(
                source=str(self._validation_images()),
                stream=True,
                batch=16,
                imgsz=self._order.plan.imgsz,
                save=False,
                verbose=False,
                project=str(self._order.run_dir),
                device="0" if self._order.devices else "cpu",
            ):
                self._stop.raise_if_set()
                file.write(json.dumps(_prediction(result)) + "\n")
                count += 1
        return {"predictions": {"file": path.name, "images": count}}

    def _validation_images(self) -> Path:
        """Return a folder with the images of the val split, or a text file that lists them."""
        data = self._order.dataset.data
        if self._order.dataset.task is Task.CLASSIFY:
            return self._write_list(sorted(Path(check_cls_dataset(str(data))["val"]).glob("*/*")))
        val = check_det_dataset(str(data))["val"]
        if isinstance(val, str) and Path(val).is_dir():
            return Path(val)
        return self._write_list(_files(val))

    def _write_list(self, files: list[Path]) -> Path:
        path = Path(tempfile.mkdtemp()) / "val_images.txt"
        path.write_text("".join(f"{file}\n" for file in files))
        return path


def _files(sources: Any) -> list[Path]:
    """Return the images of a split, which names one or several folders or text files."""
    files: list[Path] = []
    for source in map(Path, [sources] if isinstance(sources, str) else sources):
        if source.is_dir():
            files += sorted(path for path in source.rglob("*") if path.is_file())
        else:
            lines = source.read_text().split("\n")
            files += [source.parent / line if line.startswith("./") else Path(line) for line in lines if line.strip()]
    return files


def _prediction(result: Any) -> JsonObject:
    height, width = result.orig_shape
    return {
        "image": Path(result.path).name,
        "width": width,
        "height": height,
        "predictions": result.summary(decimals=4),
    }
