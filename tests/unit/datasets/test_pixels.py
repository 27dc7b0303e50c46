"""Decoded pixels are moved from a view into the cache. The next view has links to the pixels of unchanged images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.dataset_painter import OnDisk, paint
from trainer.core.dataset import DatasetOrder, PreparedDataset
from trainer.core.stop import StopSignal
from trainer.datasets.cache import pixels
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import Roots

RECIPE = "16-3-fit"  # 16 pixels is half the side length of the painted images


class Host:
    """A host that prepares the same dataset several times."""

    def __init__(self, folder: Path, *, private: bool = False, max_bytes: int = 10**9) -> None:
        self._folder = folder
        self.source = paint(folder / "set")
        self.cache = ContentCache(folder / "cache", max_bytes=max_bytes, reserve=0)
        self._datasets = FetchedDatasets(
            OnDisk(is_private=private), Roots(folder), "datasets", pixels=PixelCache(self.cache)
        )

    def prepare(self, name: str, imgsz: int = 16) -> PreparedDataset:
        order = DatasetOrder(sources=(str(self.source),), imgsz=imgsz)
        return self._datasets.prepare(order, self._folder / name, StopSignal(), lambda _: None)

    def discard(self, name: str, *, keep: bool = False) -> None:
        self._datasets.discard(self._folder / name, keep=keep)
        assert (self._folder / name).exists() is keep


def keep(view: PreparedDataset, recipe=RECIPE, only="*") -> None:
    """Write pixels as a training does."""
    for image in sorted(view.root.glob(f"images/*/{only}.jpg")):
        kept = view.root / "pixels" / recipe / f"{image.relative_to(view.root)}.npy"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(b"pixels of " + image.name.encode())


def linked(view: PreparedDataset) -> dict[str, bytes]:
    root = view.root / "pixels"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.npy"))}


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

    monkeypatch.setattr(pixels, "_files", broken)
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
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "images/train/0002.jpg.npy").symlink_to(tmp_path / "secret")
    host.discard("v1")

    assert set(linked(host.prepare("v2"))) == {f"{RECIPE}/images/train/0000.jpg.npy"}
    assert len([path for path in (tmp_path / "cache/derived").rglob("*") if path.is_file()]) == 1
    assert (tmp_path / "secret").exists()


def test_linked_pixels_stay_in_cache(host):
    keep(host.prepare("v1"))
    host.discard("v1")
    for name in ("v2", "v3"):
        assert len(linked(host.prepare(name))) == 8
        host.discard(name)


def test_changed_pixels_are_not_used(host):
    keep(host.prepare("v1"))
    host.discard("v1")
    view = host.prepare("v2")
    changed = view.root / "pixels" / RECIPE / "images/train/0000.jpg.npy"
    changed.chmod(0o644)
    changed.write_bytes(b"other pixels")

    host.discard("v2")
    assert f"{RECIPE}/images/train/0000.jpg.npy" not in linked(host.prepare("v3"))


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
        return cache.put_derived(files)

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
