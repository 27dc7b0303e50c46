"""Datasets of several sources, merged for one run."""

from __future__ import annotations

import pytest

from tests.dataset_painter import paint, prepared
from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.datasets.checks.merge import merge
from trainer.datasets.findings import Report
from trainer.datasets.samples import RecognizedDataset


def found(names, ids=None, **more) -> RecognizedDataset:
    return RecognizedDataset(samples=[], names=names, ids=ids, **more)


def test_equal_class_names_are_merged():
    merged = merge([found(("a", "b")), found(("c", "b"), ids=(1, 5))], Task.DETECT, Report())
    assert merged.names == ("a", "b", "c")
    assert [dict(part.classes) for part in merged.parts] == [{0: 0, 1: 1}, {1: 2, 5: 1}]


def test_equal_class_names_in_one_source_stay_separate():
    merged = merge([found(("a", "a")), found(("a",))], Task.DETECT, Report())
    assert merged.names == ("a", "a")
    assert [dict(part.classes) for part in merged.parts] == [{0: 0, 1: 1}, {0: 0}]


def test_different_keypoints_cannot_be_merged():
    report = Report()
    merge([found(("a",), kpt_shape=(2, 3)), found(("a",), kpt_shape=(3, 3))], Task.POSE, report)
    with pytest.raises(DatasetError, match="kpt_shape"):
        report.raise_errors()


def test_images_with_equal_names_are_kept_and_labels_are_renumbered(tmp_path):
    one = paint(tmp_path / "one")
    two = paint(tmp_path / "two", yaml="train: images/train\nval: images/val\nnames: [disc, square]\n")
    result = prepared(one, tmp_path / "run", more=(two,), root=tmp_path)
    assert result.names == ("square", "disc")
    assert dict(result.images) == {"train": 12, "val": 4}
    labels = [p.read_text() for p in sorted((tmp_path / "run/view/labels/train").iterdir())]
    assert sorted(text.split()[0] for text in labels) == ["0"] * 6 + ["1"] * 6
    assert len(set(labels)) == 12  # both sources have the same boxes, but different class numbers
    assert "image_duplicate" in {finding.code for finding in result.findings}
