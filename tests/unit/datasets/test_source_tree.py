"""Listings of untrusted folders, and the label files of images."""

from __future__ import annotations

import pytest

from trainer.core.errors import DatasetError
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.findings import Report
from trainer.datasets.formats import source_tree
from trainer.datasets.formats.source_tree import Tree, label_files
from trainer.datasets.source.roots import Roots


class Looked:
    """A source tree with the folder `root`, and its report."""

    def __init__(self, root, stop=None):
        self.root = str(root)
        self.report = Report()
        self.tree = Tree(root, Roots(root).admit, self.report, stop or StopSignal(), is_owned=False)

    @property
    def codes(self):
        return {finding.code for finding in self.report.findings}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_listing_separates_images_texts_folders_and_other_files(tmp_path):
    touch(tmp_path, "b.JPG", "a.png", "a.txt", "c.TXT", "data.yaml", "noending", "sub/x.jpg", "photo.jpg.txt")
    listing = Looked(tmp_path).tree.listing(str(tmp_path))

    assert list(listing.images) == ["a.png", "b.JPG"]
    assert set(listing.texts) == {"a", "c", "photo.jpg"}
    assert (listing.folders, listing.others) == (["sub"], ["data.yaml", "noending"])


def test_hidden_files_are_skipped_and_hidden_images_are_reported(tmp_path):
    touch(tmp_path, ".a.jpg", "._b.jpg", ".git/c.jpg", "__MACOSX/d.jpg", ".DS_Store")
    looked = Looked(tmp_path)
    listing = looked.tree.listing(looked.root)

    assert listing == source_tree.Listing()
    assert [(f.code, f.count) for f in looked.report.findings] == [("image_hidden", 1)]


def test_missing_folder_and_path_of_file_have_empty_listing(tmp_path):
    touch(tmp_path, "file")
    tree = Looked(tmp_path).tree

    assert tree.listing(f"{tmp_path}/none") == tree.listing(f"{tmp_path}/file") == source_tree.Listing()


def test_symlinks_are_followed_only_inside_allowed_folders(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "real/a.jpg")
    touch(outside, "secret.jpg", "more/b.jpg")
    (root / "inner.jpg").symlink_to(root / "real/a.jpg")
    (root / "outer.jpg").symlink_to(outside / "secret.jpg")
    (root / "folder").symlink_to(outside / "more")
    (root / "nowhere.jpg").symlink_to(root / "gone.jpg")
    looked = Looked(root)
    listing = looked.tree.listing(looked.root)

    assert listing.images == {"inner.jpg": f"{root}/real/a.jpg"}
    assert listing.folders == ["real"]
    assert [(f.code, f.count) for f in looked.report.findings] == [("symlink_outside", 3)]


def test_symlink_to_parent_folder_is_not_followed(tmp_path):
    touch(tmp_path, "a/b/x.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")

    assert [place for place, _ in Looked(tmp_path).tree.below(str(tmp_path))] == [
        f"{tmp_path}{p}" for p in ("", "/a", "/a/b")
    ]


def test_too_deeply_nested_folders_are_rejected(tmp_path):
    touch(tmp_path, "/".join(["d"] * (source_tree.MAX_DEPTH + 2)) + "/x.jpg")

    with pytest.raises(DatasetError, match="nested more than 20 levels deep"):
        list(Looked(tmp_path).tree.below(str(tmp_path)))


def test_too_many_files_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(source_tree, "MAX_FILES", 2)
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")

    with pytest.raises(DatasetError, match="more than 2 files"):
        Looked(tmp_path).tree.listing(str(tmp_path))


def test_listing_can_be_stopped(tmp_path):
    stop = StopSignal()
    stop.set(StopReason.CANCELED)

    with pytest.raises(Stopped):
        Looked(tmp_path, stop).tree.listing(str(tmp_path))


def test_each_folder_is_read_once(tmp_path):
    touch(tmp_path, "a.jpg")
    tree = Looked(tmp_path).tree
    tree.listing(str(tmp_path))
    touch(tmp_path, "b.jpg")

    assert list(tree.listing(str(tmp_path)).images) == ["a.jpg"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/train", "labels/train"), ("train/images", "train/labels"), ("set/images", "set/labels"), ("flat", "flat"),
        ("images/train", "labels"), ("train/images", "labels/train"), ("train", "train/labels"), ("train", "labels/train"),
        ("train", "labels"), ("images/a/images/b", "images/a/labels/b"), ("images", "labels"),
    ],
)  # fmt: skip
def test_labels_are_found_beside_images_or_in_labels_folder(tmp_path, images, labels):
    touch(tmp_path, f"{images}/one.jpg", f"{labels}/one.txt", "labels/other/two.txt")

    found = label_files(Looked(tmp_path).tree, f"{tmp_path}/{images}", ["one.jpg"])

    assert found["one"] == f"{tmp_path}/{labels}/one.txt"


def test_labels_of_other_images_are_not_used(tmp_path):
    touch(tmp_path, "images/one.jpg", "labels/two.txt", "images/labels/one.txt")

    assert label_files(Looked(tmp_path).tree, f"{tmp_path}/images", ["one.jpg"]) == {
        "one": f"{tmp_path}/images/labels/one.txt"
    }
    assert label_files(Looked(tmp_path).tree, f"{tmp_path}/images", ["three.jpg"]) == {}
