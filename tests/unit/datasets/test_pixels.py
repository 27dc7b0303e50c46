"""Decoded pixels are moved from a view into the cache. The next view has links to the pixels of unchanged images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.dataset_painter import OnDisk, paint
from trainer.core.dataset import DatasetOrder, PreparedDataset
from trainer.core.stop import StopSignal
from trainer.core.stored_pixels import TRAILER_BYTES, ImageVersion, most_bytes, trailer
from trainer.datasets.cache import pixels
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots

RECIPE = "16-3-fit"  # 16 pixels is half the side length of the painted images


class Host:
    """A host that prepares the same dataset several times."""

    def __init__(self, folder: Path, *, private: bool = False, max_bytes: int = 10**9) -> None:
        self._folder = folder
        self.source = paint(folder / "set")
        self.cache = ContentCache(folder / "cache", max_bytes=max_bytes, reserve=0)
        self._datasets = FetchedDatasets(
            OnDisk(is_private=private),
            ReferenceRules(Roots(folder), "datasets"),
            pixels=PixelCache(self.cache),
            decode=here,
        )

    def prepare(self, name: str, imgsz: int = 16, owner: str | None = None) -> PreparedDataset:
        order = DatasetOrder(sources=(str(self.source),), imgsz=imgsz, owner=owner)
        return self._datasets.prepare(order, self._folder / name, StopSignal(), lambda _: None)

    def discard(self, name: str, *, keep: bool = False) -> None:
        self._datasets.discard(self._folder / name, keep=keep)
        assert (self._folder / name).exists() is keep


def keep(view: PreparedDataset, recipe=RECIPE, only="*") -> None:
    """Write pixels as a training does."""
    for image in sorted(view.root.glob(f"images/*/{only}.jpg")):
        kept = view.root / "pixels" / recipe / f"{image.relative_to(view.root)}.npy"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(b"pixels of " + image.name.encode() + trailer((32, 32), ImageVersion.of(image.stat())))


def linked(view: PreparedDataset) -> dict[str, bytes]:
    root = view.kept_pixels
    return {str(path.relative_to(root)): path.read_bytes()[:-TRAILER_BYTES] for path in sorted(root.rglob("*.npy"))}


@pytest.fixture(params=[True, False], ids=["cached images", "images of the user"])
def host(request, tmp_path):
    return Host(tmp_path, private=request.param)


def test_next_view_has_pixels_of_previous_training(host):
    first = host.prepare("v1")
    assert linked(first) == {}
    keep(first)
    host.discard("v1")
    found = linked(host.prepare("v2"))

    assert len(found) == 8
    assert found[f"{RECIPE}/images/train/0003.jpg.npy"] == b"pixels of 0003.jpg"


def test_pixels_of_kept_view_are_cached(host, tmp_path):
    keep(host.prepare("v1"))
    host.discard("v1", keep=True)
    assert len(list((tmp_path / "v1/view").glob("images/*/*.jpg"))) == 8
    assert len(linked(host.prepare("v2"))) == 8


def test_disk_error_while_pixels_are_cached_is_ignored(host, monkeypatch):
    keep(host.prepare("v1"))

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pixels, "_moved", broken)
    host.discard("v1")


def test_pixels_of_other_size_or_library_version_are_not_used(host, monkeypatch):
    keep(host.prepare("v1"))
    host.discard("v1")
    assert linked(host.prepare("v2", imgsz=24)) == {}
    monkeypatch.setattr(pixels, "_makers", lambda: "opencv 99")
    assert linked(host.prepare("v3")) == {}


def test_pixels_of_images_that_are_not_scaled_down_are_not_cached(host):
    keep(host.prepare("v1", imgsz=32), recipe="32-3-fit")
    host.discard("v1")
    assert linked(host.prepare("v2", imgsz=32)) == {}


def test_old_pixels_are_not_used_for_edited_image(tmp_path):
    host = Host(tmp_path)
    keep(host.prepare("v1"))
    host.discard("v1")
    image = tmp_path / "set/images/train/0001.jpg"
    found, data = image.stat(), bytearray(image.read_bytes())
    data[-10] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns))
    names = {name.rpartition("/")[2] for name in linked(host.prepare("v2"))}

    assert len(names) == 7
    assert "0001.jpg.npy" not in names


def test_only_pixels_of_known_images_are_cached(host, tmp_path):
    view = host.prepare("v1")
    keep(view, only="0000")
    folder = view.root / "pixels" / RECIPE
    for stray in ("images/train/9999.jpg.npy", "../up.npy", "images/train/.half.npy"):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).write_bytes(b"stray")
    host.discard("v1")

    assert set(linked(host.prepare("v2"))) == {f"{RECIPE}/images/train/0000.jpg.npy"}
    assert len([path for path in (tmp_path / "cache/derived").rglob("*") if path.is_file()]) == 1
    assert list((tmp_path / "cache/tmp").iterdir()) == []


def sparse(path: Path) -> None:
    end = trailer((32, 32), ImageVersion.of(path.with_name("image").stat()))
    with path.open("wb") as file:
        file.truncate(most_bytes(16) + 1 - len(end))
        file.seek(0, os.SEEK_END)
        file.write(end)


# each writes something other than pixels to the path; the file `whole` beside it has valid pixels of the image `image`
FORGERIES = {
    "link": lambda path: path.symlink_to(path.with_name("whole")),
    "hard link": lambda path: os.link(path.with_name("whole"), path),
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "larger than an image": sparse,
    "empty": Path.touch,
    "without trailer": lambda path: path.write_bytes(b"x" * 1000),
    "of another image": lambda path: path.write_bytes(b"pixels" + trailer((32, 32), ImageVersion(1, 2, 3))),
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_only_regular_files_with_pixels_of_their_image_are_cached(host, forge):
    view = host.prepare("v1")
    keep(view, only="000[02]")
    folder = view.root / "pixels" / RECIPE / "images/train"
    os.replace(folder / "0002.jpg.npy", folder / "whole")
    (folder / "image").symlink_to(view.root / "images/train/0002.jpg")
    forge(folder / "0002.jpg.npy")
    host.discard("v1")

    assert set(linked(host.prepare("v2"))) == {f"{RECIPE}/images/train/0000.jpg.npy"}


@pytest.mark.parametrize("place", ["", "pixels", f"pixels/{RECIPE}", f"pixels/{RECIPE}/images/train"])
def test_linked_folder_of_pixels_is_not_followed(host, tmp_path, place):
    view = host.prepare("v1")
    keep(view, only="0000")
    folder = view.root / place
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    host.discard("v1")

    assert linked(host.prepare("v2")) == {}
    assert len(list((tmp_path / "moved").rglob("*.npy"))) == 1


def test_pixels_are_not_used_for_other_owner(host):
    keep(host.prepare("v1", owner="ann"))
    host.discard("v1")
    assert [len(linked(host.prepare(f"v{owner!r}", owner=owner))) for owner in ("bob", None, "None", "ann")] == [
        0,
        0,
        0,
        8,
    ]


@pytest.mark.parametrize("place", ["../up.jpg", "/up.jpg", "images/../../up.jpg", "images//up.jpg", ""])
def test_place_outside_of_view_is_ignored(tmp_path, place):
    """A decoder that a hostile image took over could return such a place."""
    pixels = PixelCache(ContentCache(tmp_path / "cache", max_bytes=10**9, reserve=0))
    pixels.link(tmp_path / "run/view", 16, [("images/a.jpg", "1.2.3.4.5")], None)
    kept = tmp_path / f"run/view/pixels/{RECIPE}/images/a.jpg.npy"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"pixels" + trailer((32, 32), ImageVersion(2, 3, 4)))
    assert pixels.take_over(tmp_path / "run/view") == 1

    pixels.link(tmp_path / "run2/view", 16, [(place, "1.2.3.4.5"), ("images/b.jpg", "1.2.3.4.5")], None)
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.npy")]
    assert found == [Path(f"run2/pixels/{RECIPE}/images/b.jpg.npy")]


def test_linked_pixels_stay_in_cache(host):
    keep(host.prepare("v1"))
    host.discard("v1")
    for name in ("v2", "v3"):
        assert len(linked(host.prepare(name))) == 8
        host.discard(name)


def test_derived_files_are_evicted_before_objects_and_never_evict_objects(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=100, reserve=0)
    cache.make_room(40)
    with cache.temporary() as path:
        path.write_bytes(b"o" * 40)
        cache.put("object", path)

    def put(*names: str) -> int:
        files = {}
        for name in names:
            files[name] = tmp_path / name
            files[name].write_bytes(b"s" * 30)
        return cache.put_derived(files.items())

    def is_linked(name: str) -> bool:
        (tmp_path / f"linked-{name}").unlink(missing_ok=True)
        found = cache.link_derived(name, tmp_path / f"linked-{name}")
        (tmp_path / f"linked-{name}").unlink(missing_ok=True)
        return found

    assert put("a", "b", "c") == 2
    assert [is_linked(name) for name in "abc"] == [True, True, False]
    os.utime(
        cache.root / "derived" / _path_of(cache, "a"),
        (0, os.stat(cache.root / "derived" / _path_of(cache, "a")).st_mtime),
    )
    assert put("d") == 1
    assert [is_linked(name) for name in "abd"] == [False, True, True]
    assert cache.get("object", 40)
    cache.make_room(60)
    assert [is_linked(name) for name in "bd"] == [False, False]
    assert cache.get("object", 40)


def _path_of(cache: ContentCache, identity: str) -> Path:
    from trainer.datasets.cache.incoming import name_of

    name = name_of(identity)
    return Path(name[:2], name)
