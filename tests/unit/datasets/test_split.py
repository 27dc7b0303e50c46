"""Each class is split by the same ratios. The split depends neither on the file order nor on the service version."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from trainer.core.dataset import SplitRequest
from trainer.core.errors import DatasetError
from trainer.datasets.checks.split import assigned, stratified
from trainer.datasets.findings import Report
from trainer.datasets.samples import Sample


def strata(counts: dict[int, int]) -> dict[str, int]:
    return {f"{cls}/{n:04}.jpg": cls for cls, count in counts.items() for n in range(count)}


@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 99, 1000])
def test_ratios_are_exact_to_one_image_and_no_split_is_empty(ratio, count):
    given = Counter(stratified(strata({0: count}), SplitRequest(train_ratio=ratio)).values())
    assert abs(given["train"] - ratio * count) <= 1
    assert given["val"] >= 1
    assert given["train"] >= 1
    assert given["train"] + given["val"] == count


def test_every_class_is_split_by_the_same_ratios():
    result = stratified(strata({0: 100, 1: 40, 2: 10, -1: 50}), SplitRequest(train_ratio=0.8))
    for cls, count in {0: 100, 1: 40, 2: 10, -1: 50}.items():
        val = sum(split == "val" for name, split in result.items() if name.startswith(f"{cls}/"))
        assert abs(val - 0.2 * count) <= 1


def test_test_split_is_made_on_request():
    given = Counter(stratified(strata({0: 100}), SplitRequest(train_ratio=0.7, test_ratio=0.1)).values())
    assert given == {"train": 70, "val": 20, "test": 10}


def test_split_does_not_depend_on_file_order():
    names = strata({0: 50, 1: 50})
    shuffled = list(names.items())
    random.Random(3).shuffle(shuffled)
    request = SplitRequest(train_ratio=0.8, seed=5)
    assert stratified(names, request) == stratified(dict(shuffled), request)


def test_split_depends_on_seed_and_is_equal_in_all_versions():
    names = strata({0: 20})
    one, other = (stratified(names, SplitRequest(train_ratio=0.8, seed=seed)) for seed in (0, 1))
    assert one != other
    assert sorted(n for n, split in one.items() if split == "val") == PINNED


# These names must never change, because users compare runs of different versions of the service.
PINNED = ["0/0002.jpg", "0/0011.jpg", "0/0012.jpg", "0/0015.jpg"]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_cannot_be_split(count):
    with pytest.raises(DatasetError, match="cannot be split"):
        stratified(strata({0: count}), SplitRequest(train_ratio=0.8))


def sample(name: str, split: str | None = None, key: str = "") -> Sample:
    return Sample(f"/x/{name}", name, split, key=key)


def test_images_are_assigned_by_id_name_file_name_or_stem():
    report = Report()
    request = SplitRequest(train_ratio=0.8, assigned={"17": "val", "a/b.jpg": "test", "c.jpg": "val", "d": "val"})
    samples = [sample("x.jpg", key="17"), sample("a/b.jpg"), sample("q/c.jpg"), sample("d.png"), sample("e.jpg")]
    assert [s.split for s in assigned(samples, request, report)] == ["val", "test", "val", "val", "train"]
    assert [f.code for f in report.findings] == ["split_unassigned"]


def test_split_that_names_only_missing_images_is_an_error():
    report = Report()
    assigned([sample("a.jpg")], SplitRequest(train_ratio=0.8, assigned={"b": "val"}), report)
    with pytest.raises(DatasetError, match="No name in the requested split matches an image"):
        report.raise_errors()
