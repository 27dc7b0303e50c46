"""A small archive that expands to gigabytes of objects does not fill the memory of the service."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import pytest

from tests.hostile.damaged_dataset import jpeg
from tests.hostile.dataset_service import DAEMON_MIB, prepared_by_service
from tests.process.sandbox_host import needs_landlock
from trainer.core.dataset import ObjectRef
from trainer.core.ports import ObjectInfo
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.source.manifest import take_manifest

BOMB = 128 << 20  # bytes of JSON


def bomb(path):
    """Write an archive of about 1 MB with a COCO file of 128 MiB."""
    row = b'{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,3,4],"area":12.0,"iscrowd":0},'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("noise.txt", os.urandom(400_000).hex())  # the ratio of the archive is not suspicious
        with archive.open("annotations.json", "w") as file:
            file.write(b'{"images":[{"id":1,"file_name":"a.jpg"}],"categories":[{"id":1,"name":"x"}],"annotations":[')
            for _ in range(BOMB // len(row) // 10_000):
                file.write(row * 10_000)
            file.write(b"{}]}")
        archive.writestr("a.jpg", jpeg())


@needs_landlock
def test_archive_whose_annotations_expand_too_much_is_rejected(tmp_path):
    (tmp_path / "home/datasets").mkdir(parents=True)
    bomb(tmp_path / "home/datasets/bomb.zip")

    (done,) = prepared_by_service(tmp_path / "home", ["bomb.zip"])

    assert "expands to more than 100 times its size" in done["outcome"]
    assert done["peak"] < DAEMON_MIB << 10


def test_images_with_kept_pixels_do_not_fill_the_memory_of_the_service(tmp_path):
    """A service remembers up to 300,000 images during a training, with long names."""
    assert peak_of(partial(keep_pixels, tmp_path)) < 4 << 20


def keep_pixels(folder):
    pairs = ((f"images/train/{number:08}{'x' * 140}.jpg", f"1.2.3.{number}.5") for number in range(50_000))
    pixels = PixelCache(ContentCache(folder / "cache", max_bytes=1 << 30, reserve=0))
    pixels.link(folder / "run/view", 640, pairs, None)
    assert pixels.take_over(folder / "run/view") == 0


def test_objects_in_use_of_a_large_bucket_need_little_memory(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 30, reserve=0)
    (tmp_path / "run").mkdir()
    cache.mark_in_use(tmp_path / "run", map(str, range(300_000)))
    tracemalloc.start()
    try:
        cache.make_room(1)
        assert tracemalloc.get_traced_memory()[1] < 18 << 20  # a set of names would need 30 MB
    finally:
        tracemalloc.stop()


def test_removal_of_a_large_folder_of_the_cache_needs_little_memory(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 30, reserve=0)
    with cache.temporary() as tree:
        tree.mkdir()
        for number in range(10_000):
            (tree / f"{number:0200}.txt").touch()
        tracemalloc.start()
    try:
        assert tracemalloc.get_traced_memory()[1] < 2 << 20  # a list of all entries would need 5 MB
    finally:
        tracemalloc.stop()
    assert not tree.exists()


class FullBucket:
    """A store with 50,000 objects in one folder."""

    def list(self, folder):
        for number in range(50_000):
            ref = replace(folder, store="full", key=f"{folder.key}/images/train/{number:08}.jpg")
            yield ObjectInfo(ref=ref, bytes=1000 + number, etag=f"{number:032x}")


def test_listing_of_a_large_bucket_does_not_fill_the_memory_of_the_service():
    assert peak_of(list_bucket) < 6 << 20  # objects would need 35 MB


def list_bucket():
    folder = ObjectRef(bucket="datasets", key="set")
    manifest = take_manifest(FullBucket(), folder, lambda _: None)
    assert manifest.digest == take_manifest(FullBucket(), folder, lambda _: None).digest
    assert len(manifest.rows) == 50_000
    assert next(manifest.objects)[1].ref.key == "set/images/train/00000000.jpg"


def peak_of(work):
    """Return the peak of Python's memory in bytes. `work` has a process of its own, without threads of other tests."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(traced, work).result()


def traced(work):
    tracemalloc.start()
    work()
    return tracemalloc.get_traced_memory()[1]


@needs_landlock
@pytest.mark.long
def test_annotations_of_128_mib_do_not_fill_the_memory_of_the_service(tmp_path):
    (tmp_path / "home/datasets").mkdir(parents=True)
    bomb(tmp_path / "bomb.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip") as archive:
        archive.extractall(tmp_path / "home/datasets/set")

    (done,) = prepared_by_service(tmp_path / "home", ["set"])

    assert "DatasetError" in done["outcome"]
    assert done["peak"] < DAEMON_MIB << 10
