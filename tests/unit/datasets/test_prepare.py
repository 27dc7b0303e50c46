"""Preparation of a local dataset: the content of the view, and unchanged source files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

from tests.dataset_painter import OnDisk, drawn, paint, prepared
from trainer.core.dataset import SplitRequest, Task
from trainer.core.errors import DatasetError
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots


def everything_in(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): f"{path.stat().st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_detection_dataset_becomes_view_of_links_with_new_yaml(tmp_path):
    data = paint(tmp_path / "set")
    result = prepared(data, tmp_path / "run")
    assert result.task is Task.DETECT
    assert result.names == ("square", "disc")
    assert dict(result.images) == {"train": 6, "val": 2}
    view = tmp_path / "run/view"
    assert yaml.safe_load(result.data.read_text()) == {
        "path": str(view),
        "train": "images/train",
        "val": "images/val",
        "nc": 2,
        "names": {0: "square", 1: "disc"},
    }
    assert (view / "images/train/0000.jpg").is_symlink()
    assert (view / "labels/train/0000.txt").read_text() == (tmp_path / "set/labels/train/0000.txt").read_text()
    assert not (view / "labels/train/0000.txt").is_symlink()


def test_files_of_user_are_unchanged(tmp_path):
    data = paint(tmp_path / "set")
    (tmp_path / "set/labels/train/0000.txt").write_text("0,0.5,0.5,1.002,0.5\r\n0,0.5,0.5,1.002,0.5\r\n")
    before = everything_in(tmp_path / "set")
    prepared(data, tmp_path / "run")
    assert everything_in(tmp_path / "set") == before


@pytest.mark.parametrize("task", [Task.SEGMENT, Task.POSE, Task.OBB, Task.DETECT])
def test_labels_of_every_task_are_kept(tmp_path, task):
    data = paint(tmp_path / "set", task=task)
    result = prepared(data, tmp_path / "run", task=task)
    assert result.task is task
    assert (tmp_path / "run/view/labels/train/0001.txt").read_text() == drawn(1).row(task) + "\n"


def test_all_errors_are_reported_in_one_exception(tmp_path):
    data = paint(tmp_path / "set")
    labels = tmp_path / "set/labels/train"
    (labels / "0000.txt").write_text("7 .5 .5 .1 .1\n")
    (labels / "0001.txt").write_text("1 320 240 50 60\n")
    (labels / "0002.txt").write_text("1 .5 .5\n")
    (tmp_path / "set/images/train/0003.jpg").write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        prepared(data, tmp_path / "run")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for sign in ("class 7", "pixels", "wrong number of columns", "0003.jpg: empty"):
        assert sign in text


def test_missing_val_is_rejected_unless_split_is_requested(tmp_path):
    data = paint(tmp_path / "set", train=10, val=0, yaml="train: images/train\nnames: [a, b]\n")
    with pytest.raises(DatasetError, match="train_ratio"):
        prepared(data, tmp_path / "run")
    result = prepared(data, tmp_path / "run2", split=SplitRequest(train_ratio=0.8))
    assert dict(result.images) == {"train": 8, "val": 2}


def test_pose_dataset_needs_kpt_shape_and_has_warning_without_flip_idx(tmp_path):
    data = paint(tmp_path / "set", task=Task.POSE)
    codes = {finding.code for finding in prepared(data, tmp_path / "v1").findings}
    assert "flip_idx_missing" in codes
    data.write_text(data.read_text() + "flip_idx: [0, 1]\n")
    result = prepared(data, tmp_path / "v2")
    assert "flip_idx_missing" not in {finding.code for finding in result.findings}
    assert yaml.safe_load(result.data.read_text())["flip_idx"] == [0, 1]
    data.write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    with pytest.raises(DatasetError, match="needs kpt_shape"):
        prepared(data, tmp_path / "v3", task=Task.POSE)


def test_rows_of_four_corners_are_polygons_unless_obb_is_requested(tmp_path):
    data = paint(tmp_path / "set", task=Task.OBB)
    result = prepared(data, tmp_path / "v1")
    assert result.task is Task.SEGMENT
    assert "task_ambiguous" in {finding.code for finding in result.findings}
    assert prepared(data, tmp_path / "v2", task=Task.OBB).task is Task.OBB


def test_summary_is_json_of_limited_size(tmp_path):
    names = ", ".join(f"c{n}" for n in range(5000))
    data = paint(tmp_path / "set", yaml=f"train: images/train\nval: images/val\nnames: [{names}]\n")
    summary = prepared(data, tmp_path / "run").summary
    assert len(json.dumps(summary)) < 64 << 10
    assert (summary["task"], summary["classes"], summary["images"]) == ("detect", 5000, {"train": 6, "val": 2})
    assert summary["labels"]["train"]["c0"] == 3
    assert {"class_empty", "class_rare"} <= {finding["code"] for finding in summary["findings"]}


def test_view_with_very_deep_folders_is_discarded(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=10**9, reserve=0)
    datasets = FetchedDatasets(
        OnDisk(), ReferenceRules(Roots(tmp_path), "datasets"), pixels=PixelCache(cache), decode=here
    )
    for place in ("", "pixels"):
        run = tmp_path / f"run{place}"
        (run / "view" / place).mkdir(parents=True)
        nest(run / "view" / place)

        datasets.discard(run)

        assert not run.exists()


def nest(folder):
    at = os.open(folder, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
