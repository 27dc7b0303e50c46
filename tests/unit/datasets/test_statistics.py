"""Checks that need the whole dataset: duplicate images, labels per split and per class, image sizes."""

from __future__ import annotations

import pytest

from tests.dataset_painter import paint, prepared
from trainer.core.errors import DatasetError
from trainer.core.events import Warned
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.checks import statistics
from trainer.datasets.findings import Report
from trainer.datasets.images.header import Facts
from trainer.datasets.samples import Sample


def found(result) -> dict[str, int]:
    return {finding.code: finding.count for finding in result.findings}


def test_duplicate_images_within_and_across_splits_are_reported(tmp_path):
    data = paint(tmp_path / "set")
    images = tmp_path / "set/images"
    (images / "train/0001.jpg").write_bytes((images / "train/0000.jpg").read_bytes())
    (images / "val/0006.jpg").write_bytes((images / "train/0002.jpg").read_bytes())
    codes = found(prepared(data, tmp_path / "run"))
    assert (codes["image_duplicate"], codes["split_leak"]) == (1, 1)


def test_val_equal_to_train_is_reported(tmp_path):
    data = paint(tmp_path / "set", yaml="train: images/train\nval: images/train\nnames: [a, b]\n")
    result = prepared(data, tmp_path / "run")
    assert found(result)["split_leak"] == 6


def test_warnings_are_reported_as_events(tmp_path):
    data = paint(tmp_path / "set")
    (tmp_path / "set/labels/train/0000.txt").unlink()
    (tmp_path / "set/labels/train/orphan.txt").write_text("0 .5 .5 .1 .1\n")
    events = []
    result = prepared(data, tmp_path / "run", events=events)
    assert {event.code for event in events if isinstance(event, Warned)} >= {
        "image_without_label",
        "label_without_image",
    }
    assert "0000.jpg" in next(f.message for f in result.findings if f.code == "image_without_label")


def test_empty_label_file_is_background_and_is_reported(tmp_path):
    data = paint(tmp_path / "set")
    (tmp_path / "set/labels/train/0000.txt").write_text("")
    finding = next(f for f in prepared(data, tmp_path / "run").findings if f.code == "image_background")
    assert (finding.level, finding.count) == ("note", 1)


@pytest.mark.parametrize(
    ("split", "sign"), [("train", "images of train have no labels"), ("val", "images of val have no labels")]
)
def test_split_without_labels_is_rejected(tmp_path, split, sign):
    data = paint(tmp_path / "set")
    for label in (tmp_path / f"set/labels/{split}").iterdir():
        label.write_text("")
    with pytest.raises(DatasetError, match=sign):
        prepared(data, tmp_path / "run")


@pytest.mark.parametrize("label_files", ["empty", "missing"])
def test_dataset_without_labels_is_rejected_with_the_message_of_the_web_app(tmp_path, label_files):
    data = paint(tmp_path / "set")
    for label in (tmp_path / "set/labels").rglob("*.txt"):
        label.write_text("") if label_files == "empty" else label.unlink()
    with pytest.raises(DatasetError) as caught:
        prepared(data, tmp_path / "run")
    assert (
        "No labeled annotations found in the dataset. Add labels (and ensure class names are assigned) then retry."
        in caught.value.problems
    )


def test_empty_and_rare_classes_are_reported(tmp_path):
    data = paint(tmp_path / "set", yaml="train: images/train\nval: images/val\nnames: [a, b, c]\n")
    codes = found(prepared(data, tmp_path / "run"))
    assert (codes["class_empty"], codes["class_rare"]) == (1, 2)


def test_unbalanced_classes_and_classes_in_only_one_split_are_reported():
    report = Report()
    statistics.balance(["a", "b", "c"], {"train": [5000, 20, 0], "val": [50, 0, 20]}, report)
    assert {f.code for f in report.findings} == {"class_balance", "class_not_in_train", "class_not_in_val"}


def test_class_numbers_that_start_at_one_are_rejected(tmp_path):
    data = paint(tmp_path / "set")
    for number, label in enumerate(sorted((tmp_path / "set/labels").rglob("*.txt"))):
        label.write_text(f"{number % 2 + 1} .5 .5 .1 .1\n")
    with pytest.raises(DatasetError, match="count classes from 1 to 2"):
        prepared(data, tmp_path / "run")


def test_image_sizes_are_summarized():
    facts = [Facts("png", w, h, 10, b"") for w, h in ((10, 10), (20, 20), (20, 20), (99, 50))]
    facts.append(Facts("", 0, 0, 0, b"", "broken"))
    summary = statistics.sizes([Sample("", "", None, facts=fact) for fact in facts])
    assert (summary["smallest"], summary["median"], summary["largest"]) == ([10, 10], [20, 20], [99, 50])
    assert summary["common"][0] == {"size": [20, 20], "images": 2}
    assert (summary["kinds"], summary["bytes"]) == ({"png": 4}, 40)
    assert statistics.sizes([]) == {}


def test_inspection_of_images_can_be_stopped(tmp_path):
    stop = StopSignal()
    stop.set(StopReason.CANCELED)
    with pytest.raises(Stopped):
        statistics.inspect([Sample(str(tmp_path), "a.jpg", "train")], {}, Report(), stop)


def test_image_with_wrong_suffix_is_reported_and_kept(tmp_path):
    data = paint(tmp_path / "set")
    (tmp_path / "set/images/train/0000.jpg").rename(tmp_path / "set/images/train/0000.png")
    result = prepared(data, tmp_path / "run")
    assert found(result)["image_suffix"] == 1
    assert result.images["train"] == 6
