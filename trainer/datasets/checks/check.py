"""A recognized dataset is checked as a whole, split if need be, and linked into the view."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.core.dataset import DatasetOrder, PreparedDataset, Task
from trainer.core.errors import DatasetError, raise_if_disk_is_broken
from trainer.core.job import JsonObject
from trainer.core.stop import StopSignal
from trainer.datasets.cache.pixels import KeptPixels
from trainer.datasets.checks import statistics
from trainer.datasets.checks.merge import Merged, merge
from trainer.datasets.checks.split import split_samples
from trainer.datasets.findings import Report
from trainer.datasets.images.facts_cache import FactsCache, identity
from trainer.datasets.images.header import Facts, read_small
from trainer.datasets.labels.check import LARGEST_LABEL, Labels, check
from trainer.datasets.labels.convert import Shape
from trainer.datasets.labels.parse import class_numbers, column_counts, guess_task
from trainer.datasets.samples import SPLITS, Found, Sample
from trainer.datasets.view.label_table import write_label_tables
from trainer.datasets.view.links import Item, folder_names, write_data_yaml, write_view

MOST_IN_SUMMARY = 200  # classes whose counts are listed
MOST_GUESSED = 10_000  # classes that labels may imply where nothing names them
MOST_LABELS = 4 << 30  # bytes of all label files, which are held in memory; those of Objects365 take 1.2 GB
CHECK_EVERY = 256  # files between looks at the stop signal


def build(
    order: DatasetOrder,
    founds: Sequence[Found],
    view: Path,
    stop: StopSignal,
    report: Report,
    cache: FactsCache | None,
    pixels: KeptPixels | None = None,
) -> PreparedDataset:
    """Check the sources of a dataset and link them into `view`, which exists.

    Raises `DatasetError` with everything that is wrong, `MachineFailed` or `Stopped`.
    """
    checked = check_all(order, founds, stop, report, cache)
    report.raise_errors()
    placed = write_view(view, _items(checked), stop, empty=_class_folders(checked))
    data = view
    if checked.task is not Task.CLASSIFY:
        merged = checked.merged
        write_label_tables(view, checked.samples, placed, checked.facts, checked.labels)
        if pixels:
            pixels.link(view, order.imgsz, _worth_keeping(checked, placed, order.imgsz))
        data = write_data_yaml(view, merged.names, checked.images, merged.kpt_shape, merged.flip_idx)
    return PreparedDataset(
        root=view,
        data=data,
        task=checked.task,
        names=checked.merged.names,
        images=checked.images,
        fingerprint=checked.fingerprint,
        findings=report.findings,
        summary=summary(checked, report),
    )


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A dataset that was looked at completely: sample i has `facts[i]` and `labels.texts[i]`."""

    task: Task
    merged: Merged
    samples: list[Sample]
    facts: list[Facts]
    labels: Labels
    texts: list[bytes]  # the label files as they were read
    images: dict[str, int]  # per split
    per_class: dict[str, list[int]]  # labels per split and class

    @property
    def fingerprint(self) -> str:
        """A sha-256 over task, class names and, by split and name, each image's content and labels."""
        parts = ["\0".join([self.task, *self.merged.names]).encode("utf-8", "surrogateescape")]
        for split, name, index in sorted((s.split or "", s.name, i) for i, s in enumerate(self.samples)):
            parts += (
                f"\0{split}/{name}\0".encode("utf-8", "surrogateescape"),
                self.facts[index].digest,
                self.labels.texts[index],
            )
        return hashlib.sha256(b"".join(parts)).hexdigest()


def check_all(
    order: DatasetOrder,
    founds: Sequence[Found],
    stop: StopSignal,
    report: Report,
    cache: FactsCache | None,
) -> Checked:
    """Look at every image and every label. What is wrong is in `report`; raises only where nothing can be looked at."""
    for found in founds:
        report.extend(found.findings)
    if not any(found.samples for found in founds):
        report.error("no-images", "The dataset has no images.")
        report.raise_errors()
    texts = [_texts(found.samples, report, stop) for found in founds]
    task = _task(order, founds, texts, report)
    founds = [_named(found, of_it, report) for found, of_it in zip(founds, texts, strict=True)]
    merged = merge(founds, task, report)
    labels = _classes(merged) if task is Task.CLASSIFY else _labels(merged, texts, task, report, stop)
    samples = [sample for part in merged.parts for sample in part.samples]
    facts = _facts(order, samples, stop, report, cache)
    samples = split_samples(samples, labels, order.split or merged.split, report)
    statistics.duplicates(samples, facts, report)
    images, per_class = _count(samples, labels, len(merged.names), report)
    statistics.balance(merged.names, per_class, report)
    return Checked(
        task=task,
        merged=merged,
        samples=samples,
        facts=facts,
        labels=labels,
        texts=[text for of_it in texts for text in of_it],
        images=images,
        per_class=per_class,
    )


def _facts(
    order: DatasetOrder,
    samples: Sequence[Sample],
    stop: StopSignal,
    report: Report,
    cache: FactsCache | None,
) -> list[Facts]:
    known = cache.load(order.sources) if cache else {}
    before = set(known)
    facts = statistics.inspect(samples, known, report, stop)
    if cache and known.keys() != before:
        cache.save(order.sources, known)
    return facts


def summary(checked: Checked, report: Report) -> JsonObject:
    """What is kept in `results.dataset`; of bounded size."""
    names = checked.merged.names
    return {
        "task": checked.task.value,
        "images": checked.images,
        "classes": len(names),
        "labels": {
            split: {names[index]: count for index, count in enumerate(counts[:MOST_IN_SUMMARY])}
            for split, counts in checked.per_class.items()
        },
        "fingerprint": checked.fingerprint,
        "image_sizes": statistics.sizes(checked.facts),
        "changes": checked.labels.changes,
        "findings": [
            {"level": f.level, "code": f.code, "message": f.message, "count": f.count, "examples": list(f.examples)}
            for f in report.findings[:100]
        ],
    }


# ── labels ──


def _texts(samples: Sequence[Sample], report: Report, stop: StopSignal) -> list[bytes]:
    texts = []
    size = 0
    for number, sample in enumerate(samples):
        if number % CHECK_EVERY == 0:
            stop.raise_if_set()
        texts.append(_text(sample, report) if sample.label else sample.text or b"")
        size += len(texts[-1])
        if size > MOST_LABELS:
            raise DatasetError(f"The label files are together larger than {MOST_LABELS >> 30} GiB.")
    return texts


def _text(sample: Sample, report: Report) -> bytes:
    try:
        text = read_small(sample.label or "", LARGEST_LABEL + 1)
    except OSError as error:
        raise_if_disk_is_broken(error, sample.name)
        report.error("label-unreadable", "{n} label files cannot be read", f"{sample.name}: {error.strerror}")
        return b""
    if len(text) > LARGEST_LABEL:
        report.error("label-size", f"{{n}} label files are larger than {LARGEST_LABEL >> 20} MiB", sample.name)
        return b""
    return text


def _task(order: DatasetOrder, founds: Sequence[Found], texts: Sequence[Sequence[bytes]], report: Report) -> Task:
    if any(sample.class_id is not None for found in founds for sample in found.samples):
        task = Task.CLASSIFY
    else:
        task = _labeled_task(order, founds, texts, report)
    is_classified = [any(sample.class_id is not None for sample in found.samples) for found in founds]
    if (order.task or task) is not task or (task is Task.CLASSIFY and not all(is_classified)):
        raise DatasetError(
            f"The dataset is made for {task}, which cannot be trained as {order.task or Task.DETECT}; "
            "classify needs a folder for each class, everything else label files.",
        )
    if task is Task.POSE and not all(found.kpt_shape for found in founds):
        report.error(
            "kpt-shape",
            "The YAML has no kpt_shape, which pose needs: kpt_shape: [number of keypoints, 2 or 3].",
        )
    elif task is Task.POSE and not all(found.flip_idx for found in founds):
        report.warning("flip-idx-missing", "Without flip_idx, which tells left from right, images are not mirrored")
    return task


def _labeled_task(
    order: DatasetOrder,
    founds: Sequence[Found],
    texts: Sequence[Sequence[bytes]],
    report: Report,
) -> Task:
    if order.task:
        return order.task
    for found in founds:
        if found.task or found.kpt_shape:
            return found.task or Task.POSE
    counts = column_counts([text for of_it in texts for text in of_it])
    if set(counts) == {9}:
        report.warning(
            "task-ambiguous",
            "All labels have four corners, which is segment or obb; segment was taken: "
            'for oriented boxes set "task": "obb" in the configuration',
        )
    return guess_task(counts)


def _named(found: Found, texts: Sequence[bytes], report: Report) -> Found:
    if found.names is not None:
        return found
    highest = min(max(*class_numbers(texts), found.count - 1, 0), MOST_GUESSED)
    report.warning("names-missing", "The dataset does not name its classes; class0, class1, … were used")
    return replace(found, names=tuple(f"class{number}" for number in range(highest + 1)))


def _labels(
    merged: Merged,
    texts: Sequence[Sequence[bytes]],
    task: Task,
    report: Report,
    stop: StopSignal,
) -> Labels:
    checked = []
    for part, of_it in zip(merged.parts, texts, strict=True):
        shape = Shape(task=task, classes=part.classes, keypoints=merged.kpt_shape)
        names = [sample.label.rpartition("/")[2] if sample.label else sample.name for sample in part.samples]
        checked.append(check(of_it, names, shape, report, stop))
        _tell_off_by_one(of_it, part.classes, report)
    return Labels.joined(checked)


def _tell_off_by_one(texts: Sequence[bytes], classes: Mapping[int, int], report: Report) -> None:
    count = len(classes)
    if report.has("class-outside") and set(classes) == set(range(count)):
        used = class_numbers(texts)
        if count in used and used <= set(range(1, count + 1)):
            report.error(
                "class-off-by-one",
                f"The labels count classes from 1 to {count}, but names: counts from 0 to {count - 1}; number the names "
                "from 1 (names: {1: …}), or the labels from 0.",
            )


def _classes(merged: Merged) -> Labels:
    """One row for each image: its class."""
    classes = [sample.class_id or 0 for part in merged.parts for sample in part.samples]
    texts = [str(number).encode() for number in classes]
    return Labels(texts, np.arange(len(classes)), np.array(classes, np.int64))


# ── what is in it ──


def _count(
    samples: Sequence[Sample],
    labels: Labels,
    classes: int,
    report: Report,
) -> tuple[dict[str, int], dict[str, list[int]]]:
    split_of = np.array([SPLITS.index(sample.split or "train") for sample in samples])
    has_rows = np.zeros(len(samples), bool)
    has_rows[labels.file] = True
    images = {split: int(np.count_nonzero(split_of == i)) for i, split in enumerate(SPLITS)}
    labeled = {split: int(np.count_nonzero((split_of == i) & has_rows)) for i, split in enumerate(SPLITS)}
    per_class = {
        split: np.bincount(labels.cls[split_of[labels.file] == i], minlength=classes).tolist()
        for i, split in enumerate(SPLITS)
        if images[split]
    }
    statistics.check_splits(images, labeled, report)
    _background(samples, has_rows, report)
    return {split: count for split, count in images.items() if count}, per_class


def _background(samples: Sequence[Sample], has_rows: NDArray[np.bool_], report: Report) -> None:
    for index in np.flatnonzero(~has_rows).tolist():
        sample = samples[index]
        if sample.label is None and sample.text is None:
            report.warning(
                "image-without-label",
                "{n} images have no label file and count as background",
                sample.name,
            )
        else:
            report.note("image-background", "{n} images have no labels and count as background", sample.name)


# ── the view ──


def _items(checked: Checked) -> list[Item]:
    folders = folder_names(checked.merged.names) if checked.task is Task.CLASSIFY else ()
    return [
        Item(
            split=sample.split or "train",
            image=sample.image,
            name=sample.name,
            text=text,
            folder="" if sample.class_id is None else folders[sample.class_id],
            link="copy" if fact.is_loose else "hardlink" if sample.owned else "symlink",
            # a label file of our own that stays as it is need not be written again
            label=sample.label if sample.owned and text is read else None,
        )
        for sample, text, read, fact in zip(
            checked.samples,
            checked.labels.texts,
            checked.texts,
            checked.facts,
            strict=True,
        )
    ]


def _worth_keeping(checked: Checked, placed: Sequence[str], imgsz: int) -> dict[str, str]:
    """The images that are scaled down before they are trained on: where each is in the view → its file's identity."""
    found = {}
    for sample, place, fact in zip(checked.samples, placed, checked.facts, strict=True):
        if max(fact.width, fact.height) > imgsz and not fact.is_loose:
            key = identity(sample.image, is_owned=sample.owned)
            found.update({place: key} if key else {})
    return found


def _class_folders(checked: Checked) -> list[str]:
    """Every class has its folder in every split, or the numbers of classes would differ between splits."""
    if checked.task is not Task.CLASSIFY:
        return []
    return [f"{split}/{folder}" for split in checked.images for folder in folder_names(checked.merged.names)]
