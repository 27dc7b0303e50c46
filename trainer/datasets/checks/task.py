"""Decide the task of a dataset, and add class names if they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.datasets.findings import Report
from trainer.datasets.labels.parse import class_numbers, column_counts, guess_task
from trainer.datasets.samples import RecognizedDataset

MAX_GUESSED_CLASSES = 10_000  # maximum number of classes of a dataset without class names


def decide_task(requested: Task | None, datasets: Sequence[RecognizedDataset], report: Report) -> Task:
    """Return the task of the training. Raises `DatasetError` if the dataset does not fit the requested task."""
    is_classified = [any(sample.class_id is not None for sample in found.samples) for found in datasets]
    task = Task.CLASSIFY if any(is_classified) else _labeled_task(requested, datasets, report)
    if requested is Task.CLASSIFY and not any(is_classified):
        raise DatasetError(
            "The dataset has no class folders. The task classify needs train/CLASS/NAME.jpg and val/CLASS/NAME.jpg in "
            "the folder that data_yaml names."
        )
    if (requested or task) is not task or (task is Task.CLASSIFY and not all(is_classified)):
        raise DatasetError(
            f"The dataset is for the task {task} and cannot be used for the task {requested or Task.DETECT}. "
            "The task classify needs one folder per class; all other tasks need label files."
        )
    if task is Task.POSE and not all(found.kpt_shape for found in datasets):
        problem = "The task pose needs kpt_shape in the YAML: kpt_shape: [number of keypoints, 2 or 3]."
        report.add("kpt_shape", problem=problem)
    elif task is Task.POSE and not all(found.flip_idx for found in datasets):
        report.add("flip_idx_missing")
    return task


def _labeled_task(requested: Task | None, datasets: Sequence[RecognizedDataset], report: Report) -> Task:
    if requested:
        return requested
    for found in datasets:
        if found.task or found.kpt_shape:
            return found.task or Task.POSE
    counts = column_counts([sample.text or b"" for found in datasets for sample in found.samples])
    if set(counts) == {9}:
        report.add("task_ambiguous")
    return guess_task(counts)


def with_names(found: RecognizedDataset, report: Report) -> RecognizedDataset:
    """Return the dataset. If it has no class names, its classes are named class0, class1, …"""
    if found.names is not None:
        return found
    numbers = class_numbers([sample.text or b"" for sample in found.samples])
    highest = min(max(*numbers, found.count - 1, 0), MAX_GUESSED_CLASSES)
    report.add("names_missing")
    return replace(found, names=tuple(f"class{number}" for number in range(highest + 1)))
