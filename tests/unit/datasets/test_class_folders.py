"""Class folders become a classification view."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataset_painter import drawn, paint, prepared
from trainer.core.dataset import SplitRequest, Task
from trainer.core.errors import DatasetError


def folders(root: Path, layout: dict[str, int]) -> Path:
    number = 0
    for place, count in layout.items():
        (root / place).mkdir(parents=True)
        for _ in range(count):
            drawn(number).image.save(root / place / f"{number:04}.jpg")
            number += 1
    return root


def test_class_folders_in_splits_are_recognized(tmp_path):
    root = folders(tmp_path / "set", {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1, "test/cat": 1})
    result = prepared(root, tmp_path / "run")
    assert (result.task, result.names, result.data) == (Task.CLASSIFY, ("cat", "dog"), tmp_path / "run/view")
    assert dict(result.images) == {"train": 5, "val": 2, "test": 1}
    assert sorted(p.name for p in (tmp_path / "run/view/train/cat").iterdir()) == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert result.summary["labels"]["train"] == {"cat": 3, "dog": 2}
    assert not (tmp_path / "run/view/data.yaml").exists()


def test_error_about_missing_class_folders_names_required_layout(tmp_path):
    with pytest.raises(DatasetError, match=r"has no class folders.*train/CLASS/NAME\.jpg"):
        prepared(paint(tmp_path / "set"), tmp_path / "run", task=Task.CLASSIFY)


def test_class_missing_in_val_has_empty_folder(tmp_path):
    root = folders(tmp_path / "set", {"train/a": 2, "train/b": 2, "train/c": 2, "val/a": 1, "val/c": 1})
    prepared(root, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run/view/val").iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("alias", ["valid", "validation"])
def test_other_names_of_val_folder_are_accepted(tmp_path, alias):
    root = folders(tmp_path / "set", {"train/a": 2, "train/b": 2, f"{alias}/a": 1, f"{alias}/b": 1})
    assert dict(prepared(root, tmp_path / "run").images) == {"train": 4, "val": 2}


def test_missing_splits_are_rejected_unless_split_is_requested(tmp_path):
    root = folders(tmp_path / "set", {"a": 10, "b": 10})
    with pytest.raises(DatasetError, match="train_ratio"):
        prepared(root, tmp_path / "run")
    result = prepared(root, tmp_path / "run2", split=SplitRequest(train_ratio=0.8))
    assert result.summary["labels"] == {"train": {"a": 8, "b": 8}, "val": {"a": 2, "b": 2}}


def test_unsafe_class_names_get_safe_folder_names_in_class_order(tmp_path):
    root = folders(tmp_path / "set", {"train/-rf": 1, "train/a b": 1, "train/ö;": 1, "val/-rf": 1, "val/a b": 1})
    result = prepared(root, tmp_path / "run")
    assert result.names == ("-rf", "a b", "ö;")
    made = sorted(p.name for p in (tmp_path / "run/view/train").iterdir())
    assert len(made) == 3
    assert not any(name.startswith("-") or ";" in name for name in made)
    assert [next((tmp_path / "run/view/train" / name).iterdir()).name for name in made] == [
        "0000.jpg",
        "0001.jpg",
        "0002.jpg",
    ]


def test_class_folders_are_rejected_for_detect(tmp_path):
    root = folders(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    with pytest.raises(DatasetError, match="is for the task classify"):
        prepared(root, tmp_path / "run", task=Task.DETECT)
