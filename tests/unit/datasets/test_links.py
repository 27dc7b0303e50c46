"""The view of a dataset: links, copies, names and fingerprint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.dataset_painter import paint, prepared
from trainer.core.errors import DatasetError, MachineFailed
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.images.header import NOT_READ
from trainer.datasets.samples import Sample
from trainer.datasets.view.links import folder_names, placed, view_names, write_data_yaml, write_view

COPIED = NOT_READ._replace(has_trailing_data=True)


def one(image: Path | str, **more) -> list[Sample]:
    return placed([Sample(str(image), "a.jpg", "train", text=b"0 1 1 1 1\n", **more)])


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "source.jpg"
    path.write_bytes(b"picture")
    return path


@pytest.mark.parametrize("private", [True, False])
def test_images_are_short_symlinks(tmp_path, private):
    data = paint(tmp_path / "set")
    view = prepared(data, tmp_path / "run", private=private).root
    link = view / "images/train/0000.jpg"
    assert str(link.readlink()) == "../../linked/0/0000.jpg"
    assert (view / "linked/0").readlink() == tmp_path / "set/images/train"
    assert not any(path.is_file() and path.stat().st_nlink > 1 for path in view.rglob("*"))


def test_folders_of_images_have_one_link_each(tmp_path):
    samples = [Sample(f"/data/{n % 3}/{n}.jpg", f"{n}.jpg", "train", text=b"") for n in range(9)]
    write_view(tmp_path / "view", placed(samples), StopSignal())
    links = sorted((tmp_path / "view/linked").iterdir())
    assert [str(link.readlink()) for link in links] == ["/data/0", "/data/1", "/data/2"]
    for n in range(9):
        link = tmp_path / f"view/images/train/{n}.jpg"
        assert os.path.realpath(link) == f"/data/{n % 3}/{n}.jpg"


def test_cached_folder_of_unchanged_labels_is_one_symlink(tmp_path):
    data = paint(tmp_path / "set")
    (tmp_path / "set/labels/val/0006.txt").write_text("0,.5,.5,.5,.5\n")
    view = prepared(data, tmp_path / "run", private=True).root
    assert (view / "labels/train").is_symlink()
    assert (view / "labels/train").samefile(tmp_path / "set/labels/train")
    assert not (view / "labels/val").is_symlink()
    assert (view / "labels/val/0007.txt").is_symlink()
    assert (view / "labels/val/0007.txt").samefile(tmp_path / "set/labels/val/0007.txt")
    # Ultralytics looks for labels beside the real path of the images
    assert not (view / "images/train").is_symlink()


def test_labels_of_renamed_images_are_linked_one_by_one(tmp_path):
    paint(tmp_path / "set", images="images/{split}/a", labels="labels/{split}/a")
    data = paint(tmp_path / "set", images="images/{split}/b", labels="labels/{split}/b")
    view = prepared(data, tmp_path / "run", private=True).root
    assert not (view / "labels/train").is_symlink()
    assert len(list((view / "labels/train").iterdir())) == len(list((view / "images/train").iterdir())) == 12


def test_converted_label_is_a_new_file_and_original_is_kept(tmp_path):
    data = paint(tmp_path / "set")
    label = tmp_path / "set/labels/train/0000.txt"
    label.write_text("0,.5,.5,.5,.5\n")
    prepared(data, tmp_path / "run", private=True)
    assert (tmp_path / "run/view/labels/train/0000.txt").read_text() == "0 0.5 0.5 0.5 0.5\n"
    assert label.read_text() == "0,.5,.5,.5,.5\n"


@pytest.mark.parametrize("private", [True, False])
def test_jpeg_that_ultralytics_would_rewrite_is_copied(tmp_path, private):
    data = paint(tmp_path / "set")
    source = tmp_path / "set/images/train/0000.jpg"
    source.write_bytes(source.read_bytes() + b"\0\0\0")
    prepared(data, tmp_path / "run", private=private)
    copy = tmp_path / "run/view/images/train/0000.jpg"
    assert not copy.is_symlink()
    assert not copy.samefile(source)
    assert copy.read_bytes() == source.read_bytes()


def test_full_disk_raises_machine_failed(tmp_path, image, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(os, "symlink", full)
    with pytest.raises(MachineFailed, match="No space left on device"):
        write_view(tmp_path / "view", one(image), StopSignal())


def test_existing_view_raises_machine_failed(tmp_path):
    data = paint(tmp_path / "set")
    prepared(data, tmp_path / "run")
    with pytest.raises(MachineFailed, match="File exists"):
        prepared(data, tmp_path / "run")


def test_error_about_removed_image_contains_its_name(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.jpg was removed"):
        write_view(tmp_path / "view", one(tmp_path / "gone.jpg", facts=COPIED), StopSignal())


def test_writing_of_view_can_be_stopped(tmp_path, image):
    stop = StopSignal()
    stop.set(StopReason.SHUTDOWN)
    with pytest.raises(Stopped):
        write_view(tmp_path / "view", one(image), stop)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b.png"], ["a.jpg", "b.png"]),
        (["a.jpg", "a.png"], ["a.jpg", "a_2.png"]),
        (["x/a.jpg", "y/a.jpg", "y/a.png"], ["a.jpg", "y_a.jpg", "y_a_2.png"]),
        (["A.jpg", "a.jpg"], ["A.jpg", "a_2.jpg"]),
        (["-a.jpg", "\n.jpg", "a:b.jpg"], ["_a.jpg", "_.jpg", "a_b.jpg"]),
        (["a.jpg\nb.jpg"], ["a.jpg_b.jpg"]),
        (["a.jfif", "b.JPE"], ["a.jpg", "b.jpg"]),
        (["größe 1 (2).jpg"], ["größe 1 (2).jpg"]),
        (["a_2.jpg", "b/a.jpg", "c/a.jpg", "c_a.jpg"], ["a_2.jpg", "a.jpg", "c_a.jpg", "c_a_2.jpg"]),
    ],
)
def test_image_names_are_kept_if_possible(names, expected):
    assert view_names(names) == expected


def test_long_image_names_are_shortened_and_unique():
    names = view_names(["é" * 240 + f"{n}.jpg" for n in range(3)])
    assert len(set(names)) == 3
    assert all(len(name.encode()) < 200 for name in names)


def test_sorted_class_folders_have_the_order_of_the_classes():
    assert folder_names(["a", "b"]) == ["a", "b"]
    assert folder_names(["b", "a"]) == ["0_b", "1_a"]
    many = folder_names([f"c{n}" for n in range(100)])
    assert many == sorted(many)


def test_yaml_has_only_known_keys_and_unchanged_class_names(tmp_path):
    names = ["no", "1.0", "a: b", "'x'", "- y", "größe", "😀", "#", "!!python/name:os.system"]
    path = write_data_yaml(tmp_path, names, ["train", "val"], (2, 3), (1, 0))
    assert yaml.safe_load(path.read_text()) == {
        "path": str(tmp_path),
        "train": "images/train",
        "val": "images/val",
        "nc": 9,
        "names": dict(enumerate(names)),
        "kpt_shape": [2, 3],
        "flip_idx": [1, 0],
    }


def test_fingerprint_depends_on_labels_and_names_but_not_on_folder(tmp_path):
    data = paint(tmp_path / "set")
    first = prepared(data, tmp_path / "v1").fingerprint
    again = prepared(paint(tmp_path / "moved"), tmp_path / "v2").fingerprint
    (tmp_path / "set/labels/train/0000.txt").write_text("0 .5 .5 .1 .1\n")
    label = prepared(data, tmp_path / "v3").fingerprint
    data.write_text(data.read_text().replace("disc", "ring"))
    names = prepared(data, tmp_path / "v4").fingerprint
    assert first == again
    assert len({first, label, names}) == 3
