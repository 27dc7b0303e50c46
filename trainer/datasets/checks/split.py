"""Splitting a dataset that has no val split: the same images on every machine, each class in its share."""

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

HOW_TO_ASK = 'add one, or ask for a split in the configuration: "split": {"train_ratio": 0.8, "seed": 0}'


def split_samples(samples: list[Sample], rows: LabelRows, request: SplitRequest | None, report: Report) -> list[Sample]:
    """Every sample in a split: as the request assigns it, as it is, or drawn where train or val is missing.

    What cannot be done is an error in `report`, and the samples without a split are then put to train.
    """
    if request and request.assigned:
        return assigned(samples, request, report)
    if {"train", "val"} <= {sample.split for sample in samples}:
        return samples
    if request is None:
        report.error("val-missing", f"The dataset has no val split; {HOW_TO_ASK}.")
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
        report.error("split-impossible", str(error))
        return [sample._replace(split=sample.split or "train") for sample in samples]
    report.note("split-drawn", f"The images were split: {request.train_ratio:g} for train, seed {request.seed}")
    return [
        sample._replace(split=drawn[sample.name]) if its_open else sample
        for sample, its_open in zip(samples, is_open, strict=True)
    ]


def _rarest_class(count: int, rows: LabelRows) -> list[int]:
    """For each file the class in it that is rarest in the whole dataset; -1 for a file without rows."""
    result = np.full(count, -1, np.int64)
    if len(rows.cls):
        often = np.bincount(rows.cls)
        order = np.argsort(-often[rows.cls], kind="stable")  # the rarest is written last and stays
        result[rows.image[order]] = rows.cls[order]
    return [int(value) for value in result]


def stratified(strata: Mapping[str, int], request: SplitRequest) -> dict[str, str]:
    """The split of each name. `strata` maps the name of a sample to its class (its rarest; -1: none).

    Within each class the samples are ordered by a hash of seed and name, so neither the file system's order nor
    another sample decides where one goes; shares are met to one sample overall and per class as far as it has
    enough. train and val get at least one sample each. Raises `DatasetError` for fewer than two samples.
    """
    if len(strata) < 2:
        raise DatasetError(f"A dataset of {len(strata)} images cannot be split; train and val need one each at least.")
    ordered = sorted(strata, key=lambda name: (strata[name], _draw(name, request.seed)))
    held = 1.0 - request.train_ratio
    test = min(request.test_ratio, held)
    quotas = {"val": held - test, "test": test, "train": request.train_ratio}
    result: dict[str, str] = {}
    given = dict.fromkeys(quotas, 0)
    for count, name in enumerate(ordered, 1):
        # the split that is furthest behind its share takes the next one: even along classes and overall
        split = max(quotas, key=lambda s: quotas[s] * count - given[s])
        given[split] += 1
        result[name] = split
    _at_least_one(result, ordered, given)
    return result


def assigned(samples: Sequence[Sample], request: SplitRequest, report: Report) -> list[Sample]:
    """The samples in the splits that the request gives them by image id, name, file name or stem; others to train."""
    result = []
    hits = 0
    for sample in samples:
        file_name = sample.name.rpartition("/")[2]
        keys = (sample.key, sample.name, file_name, file_name.rpartition(".")[0])
        split = next((request.assigned[key] for key in keys if key in request.assigned), None)
        hits += split is not None
        if split is None and sample.split is None:
            report.note("split-unassigned", "{n} images are in no list of the split and were put to train", sample.name)
        result.append(sample._replace(split=split or sample.split or "train"))
    if not hits:
        report.error("split-unknown", "None of the images that the split names exists in the dataset.")
    return result


def _at_least_one(result: dict[str, str], ordered: Sequence[str], given: dict[str, int]) -> None:
    for split in ("val", "train"):
        if not given[split]:
            largest = max(given, key=lambda s: given[s])
            name = next(name for name in ordered if result[name] == largest)
            result[name] = split
            given[split], given[largest] = 1, given[largest] - 1


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()
