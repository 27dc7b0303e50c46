"""Checks of a dataset as a whole: images, copies, splits and the balance of classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from trainer.core.stop import StopSignal
from trainer.datasets.findings import Report
from trainer.datasets.images.facts_cache import identity
from trainer.datasets.images.header import Facts, facts, wrong_suffix
from trainer.datasets.labels.check import LabelRows
from trainer.datasets.samples import SPLITS, Sample

CHECK_EVERY = 256  # number of files between two checks of the stop signal
THREADS = min(4, os.cpu_count() or 1)
RARE = 10  # labels; a class with fewer labels is hard to learn
UNBALANCED = 50  # a higher ratio between the most frequent and the rarest class causes a warning


def inspect(samples: Sequence[Sample], known: dict[str, Facts], report: Report, stop: StopSignal) -> list[Sample]:
    """Return the samples with their facts. Report an error for each unusable image.

    `known` contains facts by file identity from earlier runs. On return, it contains the facts of `samples`.
    """
    keys = [identity(sample.image, is_owned=sample.owned) for sample in samples]
    unknown = [sample.image for sample, key in zip(samples, keys, strict=True) if key not in known]

    def read(begin: int) -> list[Facts]:
        stop.raise_if_set()
        return [facts(path) for path in unknown[begin : begin + CHECK_EVERY]]

    # reading and hashing large images releases the interpreter lock, so several threads are faster
    with ThreadPoolExecutor(THREADS) as pool:
        new = (fact for part in pool.map(read, range(0, len(unknown), CHECK_EVERY)) for fact in part)
        result = [
            sample._replace(facts=known[key] if key in known else next(new))
            for sample, key in zip(samples, keys, strict=True)
        ]
    known.clear()
    known.update((key, sample.facts) for key, sample in zip(keys, result, strict=True) if key)
    for sample in result:
        fact = sample.facts
        if fact.problem:
            report.add("image_unreadable", f"{sample.name}: {fact.problem}")
        elif wrong_suffix(sample.name, fact.kind):
            report.add("image_suffix", f"{sample.name}: {fact.kind}")
    return result


def duplicates(samples: Sequence[Sample], report: Report) -> None:
    """Report equal images. Copies in one split waste time; copies in different splits make the metrics too high."""
    first: dict[bytes, Sample] = {}
    for copy in samples:
        digest = copy.facts.digest
        original = first.setdefault(digest, copy) if digest else copy
        if original is copy:
            continue
        if copy.split == original.split:
            report.add("image_duplicate", f"{copy.name} = {original.name}")
        else:
            report.add("split_leak", f"{copy.split}/{copy.name} = {original.split}/{original.name}")


def check_splits(images: Mapping[str, int], labeled: Mapping[str, int], report: Report) -> None:
    """Report an error if train or val has no images or no labels."""
    for split in ("train", "val"):
        if not images.get(split):
            if not report.has("val_missing", "train_empty"):
                report.add(f"{split}_empty", problem=f"The dataset has no images for {split}.")
        elif not labeled.get(split) and any(labeled.values()):
            report.add(f"{split}_unlabeled", images=images[split])
    if any(images.values()) and not any(labeled.values()):
        report.add("no_labels")


def balance(names: Sequence[str], per_class: Mapping[str, Sequence[int]], report: Report) -> None:
    """Report classes with few or no labels, and unbalanced classes.

    `per_class` holds the number of labels per split and class.
    """
    total = [sum(counts) for counts in zip(*per_class.values(), strict=True)] if per_class else []
    for index, count in enumerate(total):
        if not count:
            report.add("class_empty", names[index])
        elif count < RARE:
            report.add("class_rare", f"{names[index]}: {count}", limit=RARE)
        if count and not per_class.get("train", total)[index]:
            report.add("class_not_in_train", names[index])
        if count and not per_class.get("val", total)[index]:
            report.add("class_not_in_val", names[index])
    present = [count for count in total if count]
    if present and max(present) > UNBALANCED * min(present):
        report.add("class_balance", most=max(present), fewest=min(present))


def sizes(samples: Sequence[Sample]) -> dict[str, object]:
    """Return the extreme, median and most common image sizes, the formats, and the total size of the files."""
    known = [sample.facts for sample in samples if not sample.facts.problem]
    if not known:
        return {}
    ordered = sorted(((fact.width, fact.height) for fact in known), key=lambda size: size[0] * size[1])
    common = Counter((fact.width, fact.height) for fact in known).most_common(5)
    return {
        "smallest": list(ordered[0]),
        "median": list(ordered[len(ordered) // 2]),
        "largest": list(ordered[-1]),
        "common": [{"size": list(size), "images": count} for size, count in common],
        "kinds": dict(Counter(fact.kind for fact in known)),
        "bytes": sum(sample.facts.size for sample in samples),
    }


def count(
    samples: Sequence[Sample], rows: LabelRows, classes: int, report: Report
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Return images per split, and labels per split and class. Report splits and images without labels."""
    split_of = split_numbers(samples)
    has_rows = np.zeros(len(samples), bool)
    has_rows[rows.image] = True
    images = {split: int(np.count_nonzero(split_of == i)) for i, split in enumerate(SPLITS)}
    labeled = {split: int(np.count_nonzero((split_of == i) & has_rows)) for i, split in enumerate(SPLITS)}
    per_class = {
        split: np.bincount(rows.cls[split_of[rows.image] == i], minlength=classes).tolist()
        for i, split in enumerate(SPLITS)
        if images[split]
    }
    check_splits(images, labeled, report)
    for index in np.flatnonzero(~has_rows).tolist():
        name = samples[index].name
        if samples[index].text is None:
            report.add("image_without_label", name)
        else:
            report.add("image_background", name)
    return {split: count for split, count in images.items() if count}, per_class


def split_numbers(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Return, for each sample, the index of its split in SPLITS."""
    return np.array([SPLITS.index(sample.split or "train") for sample in samples], np.int64)
