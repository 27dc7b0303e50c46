"""All common layouts of YOLO datasets become the same view."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.dataset_painter import drawn, paint, prepared
from trainer.core.dataset import SplitRequest
from trainer.core.errors import DatasetError

USUAL = "names: [square, disc]\n"


def counted(result) -> dict[str, int]:
    return dict(result.images)


def codes(result) -> set[str]:
    return {finding.code for finding in result.findings if finding.level != "note"}


def labels_of(view: Path) -> list[str]:
    return [path.read_text() for path in sorted((view / "labels").rglob("*.txt"))]


ROBOFLOW = {"images": "{split}/images", "labels": "{split}/labels"}
LAYOUTS = {
    "images and labels": ({}, "train: images/train\nval: images/val\n"),
    "path: .": ({}, "path: .\ntrain: images/train\nval: images/val\n"),
    "path of another computer": ({}, "path: /home/me/set\ntrain: images/train\nval: images/val\n"),
    "path of a Windows computer": ({}, "path: C:\\Users\\me\\set\ntrain: images\\train\nval: images\\val\n"),
    "absolute split paths of another computer": (
        {},
        "train: /home/me/set/images/train\nval: /home/me/set/images/val\n",
    ),
    "trailing slashes": ({}, "train: images/train/\nval: ./images/val/\n"),
    "splits as lists": ({}, "train: [images/train]\nval:\n  - images/val\n"),
    "nc as text": ({}, "nc: '2'\ntrain: images/train\nval: images/val\n"),
    "Roboflow with a leading ..": (ROBOFLOW, "train: ../train/images\nval: ../val/images\n"),
    "Roboflow without ..": (ROBOFLOW, "train: train/images\nval: val/images\n"),
    "valid instead of val": (ROBOFLOW, "train: train/images\nvalid: val/images\n"),
    "labels beside images": ({"labels": "images/{split}"}, "train: images/train\nval: images/val\n"),
    "split folders without an images folder": (
        {"images": "{split}", "labels": "labels/{split}"},
        "train: train\nval: val\n",
    ),
    "split folders with labels inside": ({"images": "{split}", "labels": "{split}"}, "train: train\nval: val\n"),
    "labels in one flat folder": ({"labels": "labels"}, "train: images/train\nval: images/val\n"),
    "nested folders": (
        {"images": "images/{split}/a/b", "labels": "labels/{split}/a/b"},
        "train: images/train\nval: images/val\n",
    ),
    "no splits in the YAML": ({}, ""),
    "val folder without an entry in the YAML": ({}, "train: images/train\n"),
    "validation instead of val": ({}, "train: images/train\nvalidation: images/val\n"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_common_layouts_become_the_same_view(tmp_path, layout):
    where, text = LAYOUTS[layout]
    data = paint(tmp_path / "set", yaml=text + USUAL, **where)
    result = prepared(data, tmp_path / "run")
    assert counted(result) == {"train": 6, "val": 2}
    assert labels_of(tmp_path / "run/view") == [drawn(n).row() + "\n" for n in range(8)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: {0: square, 1: disc}", ("square", "disc")),
        ("names: {'0': square, '1': disc}", ("square", "disc")),
        ("names:\n  1: disc\n  0: square", ("square", "disc")),
        ("names: [yes, no]", ("yes", "no")),
        ("names: [1.0, 2]", ("1.0", "2")),
        ("names: ['a b', ' c ']", ("a b", "c")),
        ("names: [größe, 犬]", ("größe", "犬")),
        ("nc: 5\nnames: [square, disc]", ("square", "disc")),
        ("nc: 2", ("class0", "class1")),
        ("nc: 3", ("class0", "class1", "class2")),
        ("nc: 1", ("class0", "class1")),  # the class numbers of the labels are used, not nc
    ],
)
def test_class_names_are_read_from_names_or_made_from_nc_and_labels(tmp_path, text, names):
    data = paint(tmp_path / "set", yaml=f"train: images/train\nval: images/val\n{text}\n")
    result = prepared(data, tmp_path / "run")
    assert result.names == names
    assert tuple(yaml.safe_load(result.data.read_text())["names"].values()) == names


def test_wrong_nc_is_a_warning(tmp_path):
    data = paint(tmp_path / "set", yaml="nc: 5\ntrain: images/train\nval: images/val\n" + USUAL)
    assert "yaml_nc" in codes(prepared(data, tmp_path / "run"))


def test_labels_are_renumbered_if_class_ids_have_gaps(tmp_path):
    data = paint(tmp_path / "set", yaml="train: images/train\nval: images/val\nnames: {1: a, 3: b}\n")
    for label in (tmp_path / "set/labels").rglob("*.txt"):
        label.write_text("3 .5 .5 .2 .2\n1 .4 .4 .1 .1\n")
    prepared(data, tmp_path / "run")
    assert labels_of(tmp_path / "run/view") == ["1 0.5 0.5 0.2 0.2\n0 0.4 0.4 0.1 0.1\n"] * 8


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_yaml_in_other_encodings_is_read(tmp_path, encoding):
    data = paint(tmp_path / "set")
    data.write_bytes("train: images/train\nval: images/val\nnames: [café, disc]\n".encode(encoding))
    result = prepared(data, tmp_path / "run")
    assert result.names == ("café", "disc")
    assert ("yaml_encoding" in codes(result)) is (encoding == "cp1252")


def test_yaml_indented_with_tabs_is_read_with_a_warning(tmp_path):
    data = paint(tmp_path / "set", yaml="train: images/train\nval: images/val\nnames:\n\t0: a\n\t1: b\n")
    assert "yaml_tabs" in codes(prepared(data, tmp_path / "run"))


def test_reference_can_name_a_folder_or_a_yaml_with_any_name(tmp_path):
    data = paint(tmp_path / "set")
    data.rename(data.with_name("1712-my set.yml"))
    assert counted(prepared(data.with_name("1712-my set.yml"), tmp_path / "run")) == {"train": 6, "val": 2}
    assert counted(prepared(tmp_path / "set", tmp_path / "run2")) == {"train": 6, "val": 2}


def test_nested_yaml_is_found_and_unrelated_yaml_is_ignored(tmp_path):
    paint(tmp_path / "set/inner")
    (tmp_path / "set/pipeline.yaml").write_text("steps: [a, b]\n")
    assert counted(prepared(tmp_path / "set", tmp_path / "run")) == {"train": 6, "val": 2}


def test_several_yamls_are_rejected_with_their_names(tmp_path):
    data = paint(tmp_path / "set")
    shutil.copy(data, data.with_name("b.yaml"))
    data.rename(data.with_name("a.yaml"))
    with pytest.raises(DatasetError, match=r"a\.yaml, b\.yaml"):
        prepared(tmp_path / "set", tmp_path / "run")


@pytest.mark.parametrize("where", [{}, ROBOFLOW, {"images": "{split}", "labels": "{split}"}])
@pytest.mark.parametrize("names", ["classes.txt", "obj.names", "labels/classes.txt", None])
def test_folders_without_yaml_are_recognized(tmp_path, where, names):
    paint(tmp_path / "set", yaml=None, **where)
    if names:
        (tmp_path / "set" / names).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / names).write_text("square\r\ndisc\r\n")
    result = prepared(tmp_path / "set", tmp_path / "run")
    assert result.names == (("square", "disc") if names else ("class0", "class1"))
    assert counted(result) == {"train": 6, "val": 2}


@pytest.mark.parametrize("where", [{"images": "images", "labels": "labels"}, {"images": ".", "labels": "."}])
def test_flat_folder_is_split_on_request(tmp_path, where):
    paint(tmp_path / "set", yaml=None, **where)
    (tmp_path / "set/classes.txt").write_text("square\ndisc\n")
    result = prepared(tmp_path / "set", tmp_path / "run", split=SplitRequest(train_ratio=0.75))
    assert counted(result) == {"train": 6, "val": 2}
    assert "label_without_image" not in codes(result)


@pytest.mark.parametrize(
    "line",
    ["./images/train/{}", "images/train/{}", "{root}/images/train/{}", "images\\train\\{}", "/far/images/train/{}"],
)
def test_images_in_lists_are_used(tmp_path, line):
    data = paint(tmp_path / "set", yaml="train: train.txt\nval: val.txt\n" + USUAL)
    root = tmp_path / "set"
    for split in ("train", "val"):
        names = sorted(path.name for path in (root / f"images/{split}").iterdir())
        text = "\r\n".join(line.format(name, root=root) for name in names).replace("train", split)
        (root / f"{split}.txt").write_text(text + "\n\n")
    assert counted(prepared(data, tmp_path / "run")) == {"train": 6, "val": 2}
    assert labels_of(tmp_path / "run/view") == [drawn(n).row() + "\n" for n in range(8)]


def test_missing_listed_images_are_an_error(tmp_path):
    data = paint(tmp_path / "set", yaml="train: train.txt\nval: images/val\n" + USUAL)
    (tmp_path / "set/train.txt").write_text("images/train/0000.jpg\nimages/train/gone.jpg\nelsewhere/x.jpg\n")
    with pytest.raises(DatasetError, match=r"2 images that are listed in train.txt do not exist.*gone\.jpg"):
        prepared(data, tmp_path / "run")


def test_images_with_equal_names_in_subfolders_keep_their_labels(tmp_path):
    data = paint(tmp_path / "set", train=2)
    for folder in ("a", "b"):
        shutil.copytree(
            tmp_path / "set/images/train",
            tmp_path / f"set/images/train/{folder}",
            ignore=shutil.ignore_patterns("a", "b"),
        )
        shutil.copytree(
            tmp_path / "set/labels/train",
            tmp_path / f"set/labels/train/{folder}",
            ignore=shutil.ignore_patterns("a", "b"),
        )
    assert counted(prepared(data, tmp_path / "run")) == {"train": 6, "val": 2}
    stems = {path.stem for path in (tmp_path / "run/view/images/train").iterdir()}
    assert stems == {path.stem for path in (tmp_path / "run/view/labels/train").iterdir()}
    assert len(stems) == 6


def test_images_that_differ_only_in_suffix_have_two_label_files(tmp_path):
    data = paint(tmp_path / "set", train=2)
    drawn(0).image.save(tmp_path / "set/images/train/0000.png")
    assert counted(prepared(data, tmp_path / "run")) == {"train": 3, "val": 2}
    assert len(list((tmp_path / "run/view/labels/train").iterdir())) == 3


def test_hidden_files_caches_and_resource_forks_are_skipped(tmp_path):
    data = paint(tmp_path / "set")
    for name in ("._0000.jpg", ".DS_Store", "0000.npy", "train.cache"):
        (tmp_path / "set/images/train" / name).write_bytes(b"junk")
    (tmp_path / "set/labels/train.cache").write_bytes(b"junk")
    prepared(data, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run/view").rglob("*") if path.is_file()}
    names -= {"train.npz", "val.npz"}  # label tables that the service adds
    assert names == {"data.yaml", *(f"{n:04}.{suffix}" for n in range(8) for suffix in ("jpg", "txt"))}


def test_missing_train_folder_is_error_and_missing_test_folder_is_warning(tmp_path):
    data = paint(tmp_path / "set", yaml="train: images/train\nval: images/val\ntest: images/test\n" + USUAL)
    assert "test_empty" in codes(prepared(data, tmp_path / "run"))
    data.write_text("train: images/nothing\nval: images/val\n" + USUAL)
    with pytest.raises(DatasetError, match="train: names no images"):
        prepared(data, tmp_path / "run2")


def test_missing_val_is_split_from_train_on_request(tmp_path):
    data = paint(tmp_path / "set", train=10, val=0)
    result = prepared(data, tmp_path / "run", split=SplitRequest(train_ratio=0.8))
    assert counted(result) == {"train": 8, "val": 2}


def test_folder_outside_roots_is_rejected(tmp_path):
    paint(tmp_path / "elsewhere")
    data = paint(tmp_path / "set", yaml=f"train: {tmp_path}/elsewhere/images/train\nval: images/val\n" + USUAL)
    with pytest.raises(DatasetError):
        prepared(data, tmp_path / "run", root=tmp_path / "set")
    assert counted(prepared(data, tmp_path / "run2", root=tmp_path)) == {"train": 6, "val": 2}


@pytest.mark.parametrize("file", ["data.yaml", "train.txt", "annotations.json"])
def test_error_about_unreadable_file_contains_its_name(tmp_path, monkeypatch, file):
    data = paint(tmp_path / "set", yaml="train: train.txt\nval: images/val\n" + USUAL)
    (tmp_path / "set/train.txt").write_text("images/train/0000.jpg\n")
    (tmp_path / "set/annotations.json").write_text("{}")
    really_open = os.open

    def refuse(path, flags, *args, **more):
        if Path(path).name == file and not flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DatasetError, match=f"{file} cannot be read: Permission denied"):
        prepared(data.with_name("annotations.json") if file.endswith("json") else data, tmp_path / "run")
