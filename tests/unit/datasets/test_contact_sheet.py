"""The command `check`: findings and the contact sheet."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.dataset_painter import OnDisk, paint
from trainer.core.dataset import DatasetOrder, Task
from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.datasets.decoder import here
from trainer.datasets.inspection import Inspected
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots
from trainer.datasets.view.contact_sheet import CAPTION, CELL, COLUMNS


def checked(source, tmp_path, task=None, sheet="sheet.png") -> Inspected:
    datasets = FetchedDatasets(OnDisk(), ReferenceRules(Roots(tmp_path), "datasets"), decode=here)
    order = DatasetOrder(sources=(str(source),), task=task)
    return datasets.check(order, tmp_path / "staging", StopSignal(), lambda _: None, tmp_path / sheet)


def errors(result: Inspected) -> set[str]:
    return {finding.code for finding in result.findings if finding.level == "error"}


@pytest.mark.parametrize("task", [Task.DETECT, Task.SEGMENT, Task.POSE, Task.OBB])
def test_sheet_shows_labeled_samples_of_every_split(tmp_path, task):
    result = checked(paint(tmp_path / "set", task=task), tmp_path, task)
    assert (errors(result), result.drawn, result.summary["images"]) == (set(), 8, {"train": 6, "val": 2})
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (COLUMNS * CELL, 2 * (CELL + CAPTION))
        colors = {color for _, color in sheet.getcolors(1 << 24)}
    assert (204, 20, 20) in colors  # the color of class 0 is drawn


def test_broken_dataset_is_drawn_and_errors_are_reported(tmp_path):
    data = paint(tmp_path / "set")
    (tmp_path / "set/images/train/0000.jpg").write_bytes(b"junk")
    (tmp_path / "set/images/train/0002.jpg").write_bytes(
        (tmp_path / "set/images/train/0001.jpg").read_bytes()[:-40] + b"\xff\xd9"
    )
    (tmp_path / "set/labels/train/0001.txt").write_text("cat 1 2 3 4\n9 .5 .5 .1 .1\n")
    result = checked(data, tmp_path)
    assert errors(result) == {
        "image_unreadable",
        "label_text",
        "class_outside",
    }
    assert result.drawn == 8


def test_at_most_thirty_samples_are_drawn(tmp_path):
    assert checked(paint(tmp_path / "set", train=40, val=3), tmp_path).drawn == 30


def test_unwritable_sheet_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="contact sheet cannot be written"):
        checked(paint(tmp_path / "set"), tmp_path, sheet="no/such/folder.png")
