"""Run all checks of a dataset in order. Each step adds its results to the samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from trainer.core.dataset import DatasetOrder, Task
from trainer.core.errors import DatasetError, raise_if_disk_is_broken
from trainer.core.job import JsonObject
from trainer.core.stop import StopSignal
from trainer.datasets.checks import statistics
from trainer.datasets.checks.merge import Merged, merge
from trainer.datasets.checks.split import split_samples
from trainer.datasets.checks.task import decide_task, with_names
from trainer.datasets.findings import Report
from trainer.datasets.images.facts_cache import FactsCache
from trainer.datasets.images.header import read_small
from trainer.datasets.labels.check import MAX_LABEL_BYTES, LabelRows, Labels, check
from trainer.datasets.labels.convert import CHANGES, Shape
from trainer.datasets.labels.parse import class_numbers
from trainer.datasets.samples import RecognizedDataset, Sample

MAX_CLASSES_SHOWN = 200  # maximum number of classes in the summary
MAX_TOTAL_BYTES = 4 << 30  # limit for all label files of one source, in memory; Objects365 has 1.2 GB


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A completely checked dataset. `rows.image` holds indices in `samples`."""

    task: Task
    names: tuple[str, ...]
    kpt_shape: tuple[int, int] | None
    flip_idx: tuple[int, ...] | None
    samples: list[Sample]
    rows: LabelRows
    images: Mapping[str, int]  # number of images per split
    per_class: Mapping[str, Sequence[int]]  # number of labels per split and class

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of the task, the class names, and the split, name, content and labels of each image."""
        digest = hashlib.sha256("\0".join([self.task, *self.names]).encode("utf-8", "surrogateescape"))
        for sample in sorted(self.samples, key=lambda sample: (sample.split or "", sample.name)):
            head = f"\0{sample.split or ''}/{sample.name}\0".encode("utf-8", "surrogateescape")
            digest.update(head + sample.facts.digest + (sample.text or b""))
        return digest.hexdigest()


def check_all(
    order: DatasetOrder,
    datasets: Sequence[RecognizedDataset],
    stop: StopSignal,
    report: Report,
    cache: FactsCache | None,
) -> Checked:
    """Check every image and every label of the sources. Problems go into `report`.

    Raises `DatasetError` only if the dataset cannot be checked at all.
    """
    if not any(found.samples for found in datasets):
        report.add("no_images")
        report.raise_errors()
    datasets = [replace(found, samples=_read_labels(found.samples, report, stop)) for found in datasets]
    task = decide_task(order.task, datasets, report)
    merged = merge([with_names(found, report) for found in datasets], task, report)
    samples, rows = _classified(merged) if task is Task.CLASSIFY else _labeled(merged, task, report, stop)
    samples = _inspected(order, samples, stop, report, cache)
    samples = split_samples(samples, rows, order.split or merged.split, report)
    statistics.duplicates(samples, report)
    images, per_class = statistics.count(samples, rows, len(merged.names), report)
    statistics.balance(merged.names, per_class, report)
    return Checked(
        task=task,
        names=merged.names,
        kpt_shape=merged.kpt_shape,
        flip_idx=merged.flip_idx,
        samples=samples,
        rows=rows,
        images=images,
        per_class=per_class,
    )


def summary(checked: Checked, report: Report) -> JsonObject:
    """Return the content of `results.dataset`; its size is limited."""
    counts = {finding.code: finding.count for finding in report.findings}
    return {
        "task": checked.task.value,
        "images": dict(checked.images),
        "classes": len(checked.names),
        "labels": {
            split: dict(zip(checked.names[:MAX_CLASSES_SHOWN], counts, strict=False))
            for split, counts in checked.per_class.items()
        },
        "fingerprint": checked.fingerprint,
        "image_sizes": statistics.sizes(checked.samples),
        "changes": {change: counts[f"label_{change}"] for change in CHANGES if f"label_{change}" in counts},
        "findings": [asdict(finding) | {"examples": [*finding.examples]} for finding in report.findings[:100]],
    }


def _read_labels(samples: Sequence[Sample], report: Report, stop: StopSignal) -> list[Sample]:
    """Return the samples with the text of their label files. Unreadable files go into `report`.

    Raises `DatasetError` if the total size of the files exceeds the limit.
    """
    result = []
    size = 0
    for number, sample in enumerate(samples):
        if number % statistics.CHECK_EVERY == 0:
            stop.raise_if_set()
        read = sample._replace(text=_label_text(sample, sample.label, report)) if sample.label else sample
        result.append(read)
        size += len(read.text or b"")
        if size > MAX_TOTAL_BYTES:
            raise DatasetError(
                f"The label files are larger than {MAX_TOTAL_BYTES >> 30} GiB in total. Split the dataset or simplify polygons."
            )
    return result


def _label_text(sample: Sample, path: str, report: Report) -> bytes:
    try:
        text = read_small(path, MAX_LABEL_BYTES + 1)
    except OSError as error:
        raise_if_disk_is_broken(error, sample.name)
        report.add("label_unreadable", f"{sample.name}: {error.strerror}")
        return b""
    if len(text) > MAX_LABEL_BYTES:
        report.add("label_size", sample.name, limit=MAX_LABEL_BYTES >> 20)
        return b""
    return text


def _inspected(
    order: DatasetOrder, samples: Sequence[Sample], stop: StopSignal, report: Report, cache: FactsCache | None
) -> list[Sample]:
    known = cache.load(order) if cache else {}
    before = set(known)
    samples = statistics.inspect(samples, known, report, stop)
    if cache and known.keys() != before:
        cache.save(order, known)
    return samples


def _labeled(merged: Merged, task: Task, report: Report, stop: StopSignal) -> tuple[list[Sample], LabelRows]:
    """Return the samples with labels that fit the task, and the rows of the labels."""
    parts = []
    for part in merged.parts:
        texts = [sample.text or b"" for sample in part.samples]
        names = [sample.label.rpartition("/")[2] if sample.label else sample.name for sample in part.samples]
        shape = Shape(task=task, classes=part.classes, keypoints=merged.kpt_shape)
        parts.append(check(texts, names, shape, report, stop))
        _report_off_by_one(texts, part.classes, report)
    labels = Labels.joined(parts)
    samples = [
        sample if text == (sample.text or b"") else sample._replace(text=text, label=None)
        for sample, text in zip(merged.samples, labels.texts, strict=True)
    ]
    return samples, labels.rows


def _report_off_by_one(texts: Sequence[bytes], classes: Mapping[int, int], report: Report) -> None:
    count = len(classes)
    if report.has("class_outside") and set(classes) == set(range(count)):
        used = class_numbers(texts)
        if count in used and used <= set(range(1, count + 1)):
            report.add("class_off_by_one", classes=count, last=count - 1)


def _classified(merged: Merged) -> tuple[list[Sample], LabelRows]:
    """Return the samples with one label row each, which contains only the class."""
    samples = [sample._replace(text=str(sample.class_id or 0).encode()) for sample in merged.samples]
    classes = np.array([sample.class_id or 0 for sample in samples], np.int64)
    return samples, LabelRows(np.arange(len(samples)), classes)
