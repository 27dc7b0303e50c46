"""The report on a trained model, with a bounded size. It becomes part of the row's `results`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import __version__
from trainer.core.dataset import Task
from trainer.core.job import JsonObject
from trainer.core.results_table import numbers, rows

LARGEST = 256 * 1024  # bytes of JSON
MOST_CLASSES = 100
CURVE_POINTS = 101

# task → attribute and suffix of its own metric; Ultralytics also measures the boxes of masks and poses
_METRIC = {
    Task.DETECT: ("box", "(B)"),
    Task.OBB: ("box", "(B)"),
    Task.SEGMENT: ("seg", "(M)"),
    Task.POSE: ("pose", "(P)"),
}
_CURVES = ("precision_recall", "f1", "precision", "recall")


def validation(metrics: Any, task: Task) -> JsonObject:
    """Return the metrics, the confusion matrix and the curves of one validation.

    `mAP` (50-95), `mAP50`, `precision` and `recall` belong to the task's own metric: masks for the task `segment`,
    keypoints for the task `pose`, otherwise boxes. The task `classify` has `top1` and `top5`. Its `mAP` is `top1`, so
    that every run has a `mAP`.
    """
    return {
        **summary(numbers(metrics.results_dict), task),
        "per_class": _per_class(metrics, task),
        "confusion_matrix": _confusion_matrix(metrics),
        "curves": _curves(metrics, task),
    }


def summary(metrics: Mapping[str, float], task: Task) -> JsonObject:
    """Return the main metrics. The key `metrics` contains all metrics with Ultralytics' names."""
    if task is Task.CLASSIFY:
        top1, top5 = (metrics.get(f"metrics/accuracy_top{n}") for n in (1, 5))
        return {"mAP": top1, "top1": top1, "top5": top5, "metrics": dict(metrics)}
    suffix = _METRIC[task][1]
    names = {"mAP": "mAP50-95", "mAP50": "mAP50", "precision": "precision", "recall": "recall"}
    return {ours: metrics.get(f"metrics/{theirs}{suffix}") for ours, theirs in names.items()} | {
        "metrics": dict(metrics)
    }


def from_results(results: Path, epoch: int | None, task: Task) -> JsonObject:
    """Return the summary of an epoch from results.csv, for a training without a final validation.

    If `epoch` is None, the last epoch is used.
    """
    text = results.read_text(errors="replace") if results.exists() else ""
    by_epoch = {number: row for number, _, row in rows(text)}
    row = by_epoch.get(epoch or 0) or next(reversed(by_epoch.values()), {})
    return summary(numbers({key: value for key, value in row.items() if key.startswith(("metrics/", "val/"))}), task)


def environment(args: Mapping[str, Any], fingerprint: str) -> JsonObject:
    """Return the conditions of the training, besides its plan: versions, hardware, seed, fingerprint of the dataset."""
    has_gpu = torch.cuda.is_available()
    driver = Path("/proc/driver/nvidia/version")
    return {
        "trainer": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "ultralytics": importlib.metadata.version("ultralytics"),
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": np.__version__,
        "cuda": torch.version.cuda if has_gpu else None,
        "driver": driver.read_text().splitlines()[0] if has_gpu and driver.exists() else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if has_gpu else [],
        "cpus": os.cpu_count(),
        "seed": args.get("seed", 0),
        "deterministic": args.get("deterministic", True),
        "dataset": fingerprint,
    }


def bounded(report: JsonObject) -> JsonObject:
    """Return the report. If it is too large, its largest parts are removed, and `notes` lists these parts."""
    notes = []
    for part in ("curves", "confusion_matrix", "per_class", "test"):
        if len(json.dumps(report)) <= LARGEST:
            break
        if report.get(part):
            report = {**report, part: None}
            notes.append(f"`{part}` was removed, because the report would be larger than {LARGEST // 1024} KiB")
    return {**report, "notes": notes} if notes else report


def _per_class(metrics: Any, task: Task) -> list[JsonObject]:
    if task is Task.CLASSIFY:
        return _accuracy_per_class(metrics)
    metric = getattr(metrics, _METRIC[task][0])
    rows = []
    for i, c in enumerate(list(metric.ap_class_index)[:MOST_CLASSES]):
        precision, recall, map50, map50_95 = (_rounded(value) for value in metric.class_result(i))
        counts = {"images": int(metrics.nt_per_image[c]), "instances": int(metrics.nt_per_class[c])}
        shares = {"precision": precision, "recall": recall, "mAP50": map50, "mAP": map50_95}
        rows.append({"class": int(c), "name": metrics.names[int(c)], **counts, **shares})
    return rows


def _accuracy_per_class(metrics: Any) -> list[JsonObject]:
    matrix = metrics.confusion_matrix
    total = matrix.matrix.sum(0)  # columns are the true classes
    return [
        {
            "class": c,
            "name": matrix.names[c],
            "images": int(n),
            "accuracy": _rounded(matrix.matrix[c, c] / n) if n else None,
        }
        for c, n in enumerate(total[:MOST_CLASSES])
        if c < len(matrix.names)
    ]


def _confusion_matrix(metrics: Any) -> JsonObject | None:
    """Return the counts, with one row per predicted class and one column per true class.

    Return None if there are no counts (plots off) or too many classes.
    """
    confusion = metrics.confusion_matrix
    if confusion is None or not confusion.matrix.sum() or len(confusion.names) > MOST_CLASSES:
        return None
    names = [confusion.names[i] for i in range(len(confusion.names))]
    background = ["background"] * (len(confusion.matrix) - len(names))
    return {"names": names + background, "predicted_by_true": confusion.matrix.astype(int).tolist()}


def _curves(metrics: Any, task: Task) -> JsonObject:
    """Return the curves as `CURVE_POINTS` values over x from 0 to 1: the mean, and each class if there are at most 20."""
    if task is Task.CLASSIFY:
        return {}
    metric = getattr(metrics, _METRIC[task][0])
    if not len(metric.ap_class_index):
        return {}
    names = [metrics.names[int(c)] for c in metric.ap_class_index]
    curves: JsonObject = {"classes": names if len(names) <= 20 else []}
    for name, (x, values, _, _) in zip(_CURVES, metric.curves_results, strict=True):
        points = np.linspace(0, len(x) - 1, CURVE_POINTS).round().astype(int)
        ys = np.asarray(values)[:, points]  # (classes, points)
        per_class = np.round(ys, 4).tolist() if curves["classes"] else []
        curves[name] = {"mean": np.round(ys.mean(0), 4).tolist(), "per_class": per_class}
    return curves


def _rounded(value: Any) -> float:
    return round(float(value), 5)
