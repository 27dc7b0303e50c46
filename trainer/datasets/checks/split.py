"""Split a dataset at random or by names. A random split has the same ratio in each class and is reproducible."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trainer.core.dataset import SplitRequest
from trainer.core.errors import DatasetError
from trainer.datasets.findings import Report
from trainer.datasets.labels.check import LabelRows
from trainer.datasets.samples import Sample


def split_samples(samples: list[Sample], rows: LabelRows, request: SplitRequest | None, report: Report) -> list[Sample]:
    """Return the samples with a split: the requested split, or else the split in the dataset.

    If the dataset has no train or no val split, it is split at random, as requested. If a random split is not requested
    or is impossible, an error goes into `report`, and each sample without a split is put into train.
    """
    if request and request.assigned:
        return assigned(samples, request, report)
    if {"train", "val"} <= {sample.split for sample in samples}:
        return samples
    if request is None:
        report.add("val_missing")
        return [sample._replace(split=sample.split or "train") for sample in samples]
    return _drawn(samples, rows, request, report)


def _drawn(samples: list[Sample], rows: LabelRows, request: SplitRequest, report: Report) -> list[Sample]:
    strata = _rarest_class(len(samples), rows)
    is_open = [sample.split in (None, "train") for sample in samples]
    if any(sample.split == "test" for sample in samples):
        request = replace(request, test_ratio=0.0)
    try:
        drawn = stratified({s.name: strata[i] for i, s in enumerate(samples) if is_open[i]}, request)
    except DatasetError as error:
        report.add("split_impossible", problem=str(error))
        return [sample._replace(split=sample.split or "train") for sample in samples]
    report.add("split_drawn", ratio=request.train_ratio, seed=request.seed)
    return [
        sample._replace(split=drawn[sample.name]) if is_redrawn else sample
        for sample, is_redrawn in zip(samples, is_open, strict=True)
    ]


def _rarest_class(count: int, rows: LabelRows) -> list[int]:
    """Return for each image its class with the fewest labels in the dataset, or -1 for an image without labels."""
    result = np.full(count, -1, np.int64)
    if len(rows.cls):
        often = np.bincount(rows.cls)
        # the most frequent class is first: the assignment keeps the last class of each image, which is its rarest
        order = np.argsort(-often[rows.cls], kind="stable")
        result[rows.image[order]] = rows.cls[order]
    return [int(value) for value in result]


def stratified(strata: Mapping[str, int], request: SplitRequest) -> dict[str, str]:
    """Return the split of each name. `strata` maps the name of a sample to its rarest class, or to -1 without labels.

    Within each class the samples are ordered by a hash of seed and name, so the order of files does not matter. The
    ratios are exact to one sample, for the dataset and for each class with enough samples. train and val get at least
    one sample each. Raises `DatasetError` for fewer than two samples.
    """
    if len(strata) < 2:
        raise DatasetError(
            f"A dataset of {len(strata)} images cannot be split; train and val need at least one image each."
        )
    drawn = {
        name: hashlib.sha256(f"{request.seed}\0{name}".encode("utf-8", "surrogateescape")).digest() for name in strata
    }
    ordered = sorted(strata, key=lambda name: (strata[name], drawn[name]))
    held = 1.0 - request.train_ratio
    test = min(request.test_ratio, held)
    quotas = {"val": held - test, "test": test, "train": request.train_ratio}
    result: dict[str, str] = {}
    given = dict.fromkeys(quotas, 0)
    for count, name in enumerate(ordered, 1):
        # the next sample goes to the split that is furthest below its ratio
        split = max(quotas, key=lambda s: quotas[s] * count - given[s])
        given[split] += 1
        result[name] = split
    _at_least_one(result, ordered, given)
    return result


def assigned(samples: Sequence[Sample], request: SplitRequest, report: Report) -> list[Sample]:
    """Return the samples with the splits that the request assigns by image id, name, file name or stem.

    An image that is not assigned keeps its split. Without a split, it is put into train.
    """
    result = []
    hits = 0
    for sample in samples:
        file_name = sample.name.rpartition("/")[2]
        keys = (sample.key, sample.name, file_name, file_name.rpartition(".")[0])
        split = next((request.assigned[key] for key in keys if key in request.assigned), None)
        hits += split is not None
        if split is None and sample.split is None:
            report.add("split_unassigned", sample.name)
        result.append(sample._replace(split=split or sample.split or "train"))
    if not hits:
        report.add("split_unknown")
    return result


def _at_least_one(result: dict[str, str], ordered: Sequence[str], given: dict[str, int]) -> None:
    for split in ("val", "train"):
        if not given[split]:
            largest = max(given, key=lambda s: given[s])
            name = next(name for name in ordered if result[name] == largest)
            result[name] = split
            given[split], given[largest] = 1, given[largest] - 1
