"""Check the curves of interrupted real trainings, and count the epochs that were a new best.

An epoch is a new best when no earlier epoch of the run was better. Ultralytics writes best.pt only
after a new best. So a resume is most likely to lose the best model if the next epoch is not a new best.
"""

from __future__ import annotations

import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.cloud import BUCKET

FITNESS = "metrics/mAP50-95(B)"
os.environ.setdefault("YOLO_OFFLINE", "1")  # Ultralytics reads this variable during its import


@dataclass
class Curves:
    """Counts over all valid runs that were not deleted."""

    epochs: int = 0
    new_bests: int = 0
    resumes: int = 0
    resumes_below_best: int = 0  # the next epoch was not a new best
    resumes_at_best: int = 0
    models: int = 0  # loaded best.pt files of completed runs

    def lines(self) -> list[tuple[str, str]]:
        below = self.epochs - self.new_bests
        unfinished = self.resumes - self.resumes_below_best - self.resumes_at_best
        resumes = (
            f"{self.resumes}. Next epoch a new best: {self.resumes_at_best}; not a new best: {self.resumes_below_best}; "
            f"not reached: {unfinished}"
        )
        return [
            ("epochs in the history", f"{self.epochs}; {below} were not a new best ({_share(below, self.epochs)})"),
            ("resumes", resumes),
            ("models of completed runs, loaded and compared with the epochs in the history", str(self.models)),
        ]


def check_curves(findings, rows) -> Curves:
    """Count the epochs, and record each completed run whose curve or model is inconsistent."""
    curves = Curves()
    with TemporaryDirectory() as folder:
        for row in rows.values():
            if row["id"] in findings.invalid:
                continue
            _count(curves, findings.cloud.events(row["id"]))
            if row["status"] == "completed":
                try:
                    _check_completed(findings.cloud, row, Path(folder) / f"{row['id']}.pt")
                    curves.models += 1
                except (AssertionError, KeyError, ValueError) as broken:
                    findings.violations.append(f"curve of {row['id']}: {broken!r}")
    return curves


def _count(curves: Curves, events) -> None:
    """Add the epochs of a run to the counts. `events` are in the order of attempts."""
    fitness: dict[int, float] = {}
    resumed_at = None
    for event in events:
        data = event["data"]
        if event["kind"] == "warning" and data["code"] == "resumed":
            resumed_at = int(re.search(r"\d+", data["message"])[0]) + 1
            curves.resumes += 1
        if event["kind"] == "epoch" and FITNESS in data["metrics"]:
            epoch, reached = data["epoch"], data["metrics"][FITNESS]
            best_before = max((value for number, value in fitness.items() if number < epoch), default=0.0)
            if epoch == resumed_at:
                curves.resumes_below_best += reached < best_before
                curves.resumes_at_best += reached >= best_before
                resumed_at = None
            fitness[epoch] = reached
    best = 0.0
    for _, reached in sorted(fitness.items()):
        curves.epochs += 1
        curves.new_bests += reached >= best
        best = max(best, reached)


def _check_completed(cloud, row, file: Path) -> None:
    prefix = f"training_runs/{row['id']}/{row['attempt']}"
    table = csv.DictReader(io.StringIO(cloud.storage.get(BUCKET, f"{prefix}/results.csv").decode()))
    lines = [{name.strip(): float(value) for name, value in line.items()} for line in table]
    epochs = [int(line["epoch"]) for line in lines]
    assert epochs == list(range(1, row["results"]["metrics"]["epoch"] + 1)), f"results.csv has the epochs {epochs}"
    rates = [line["lr/pg0"] for line in lines]
    assert rates == sorted(rates, reverse=True), f"the learning rates do not follow one schedule: {rates}"
    reported = {event["data"]["epoch"]: event["data"]["metrics"][FITNESS] for event in cloud.events(row["id"], "epoch")}
    written = {int(line["epoch"]): line[FITNESS] for line in lines}
    differing = [epoch for epoch in written if abs(reported.get(epoch, -1) - written[epoch]) > 1e-4]
    assert not differing, f"the history and results.csv differ in the epochs {differing}: {reported}, {written}"
    file.write_bytes(cloud.storage.get(BUCKET, f"{prefix}/best.pt"))
    reached, arguments = _load(file)
    plan = row["results"]["plan"]
    trained = {name: arguments[name] for name in ("epochs", "batch", "imgsz")}
    assert trained == {name: plan[name] for name in trained}, (
        f"best.pt was trained with {trained}, but the plan is {plan}"
    )
    assert abs(reached - max(written.values())) < 1e-4, (
        f"best.pt has the fitness {reached}, but the curve has {written}"
    )


def _load(file: Path) -> tuple[float, dict]:
    """Return the fitness and the training arguments of the weights, after a prediction with them."""
    import numpy as np
    from ultralytics import YOLO

    model = YOLO(file)
    model.predict(np.zeros((64, 64, 3), dtype=np.uint8), imgsz=64, verbose=False)
    return model.ckpt["train_metrics"]["fitness"], model.ckpt["train_args"]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"
