"""Hostile image lists, annotation files and class folders in a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.damaged_dataset import (
    Damage,
    jpeg,
    run,
    with_list,
)
from trainer.core.dataset import SplitRequest, Task

LISTS = {
    "etc": ("/etc/passwd\n", "do not exist"),
    "upwards": ("../../secrets/secret.jpg\n", "do not exist"),
    "secrets by absolute path": ("ROOT/../../secrets/secret.jpg\n", "do not exist"),
    "urls": ("http://169.254.169.254/a.jpg\nfile:///etc/passwd\n", "do not exist"),
    "a line of a megabyte": ("images/train/" + "a" * (1 << 20) + ".jpg\n", "do not exist"),
    "names of ten thousand characters": ("a/" * 5000 + "b.jpg\n", "do not exist"),
    "NUL bytes": ("images/train/0.jpg\0\n", "do not exist"),
    "broken Unicode": ("images/train/\udcff\udcfe.jpg\n", "do not exist"),
    "control characters": ("images/train/\x1b[2J.jpg\n", "do not exist"),
    "options": ("--exec=touch\n-rf\n", "do not exist"),
    "a hundred thousand times the same": ("images/train/0.jpg\n" * 100_000, "ok"),
    "a list that names itself": ("train.txt\n", "do not exist"),
    "nothing": ("\n\n", "names no images"),
    "folders": ("images/train/\nimages/train/.\n", "do not exist"),
}


@pytest.mark.parametrize("case", LISTS)
def test_hostile_image_list_is_rejected_or_harmless(tmp_path, case):
    text, expected = LISTS[case]
    assert expected in run(tmp_path, with_list(text))


def coco(change: Callable[[dict], object] | None = None) -> Damage:
    document = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 16, "height": 16} for n in range(4)],
        "annotations": [{"image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in range(4)],
        "categories": [{"id": 1, "name": "a"}],
    }
    if change:
        change(document)
    return with_json(json.dumps(document))


def with_json(text: str | bytes) -> Damage:
    return lambda root: (root / "annotations.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def first_annotation(**fields) -> Damage:
    return coco(lambda document: document["annotations"][0].update(fields))


def rle(counts, size=(16, 16)) -> Damage:
    return first_annotation(segmentation={"size": list(size), "counts": counts}, bbox=None)


JSONS = {
    "deep brackets": (with_json("[" * 100_000), "not valid JSON"),
    "deep objects": (with_json('{"images":' * 100_000), "not valid JSON"),
    "binary": (with_json(bytes(range(256))), ""),
    "a number of a million digits": (with_json('{"images": [' + "9" * (1 << 20) + "]}"), "not valid JSON"),
    "a list": (with_json("[]"), "not a COCO file"),
    "no images": (with_json('{"images": [], "categories": [{"id": 1, "name": "a"}]}'), "no images"),
    "images that are words": (with_json('{"images": ["a"], "categories": [{"id": 1, "name": "a"}]}'), "no images"),
    "a file name upwards": (
        coco(lambda d: d["images"][0].update(file_name="../../secrets/secret.jpg")),
        "do not exist",
    ),
    "a file name in etc": (coco(lambda d: d["images"][0].update(file_name="/etc/passwd")), "do not exist"),
    "a file name of dots": (coco(lambda d: d["images"][0].update(file_name="../..")), "do not exist"),
    "a file name that is a list": (coco(lambda d: d["images"][0].update(file_name=["a"])), "no file_name"),
    "a file name of a megabyte": (coco(lambda d: d["images"][0].update(file_name="a" * (1 << 20))), "do not exist"),
    "a size of zero": (coco(lambda d: d["images"][0].update(width=0, height=-5)), "ok"),
    "a size of words": (coco(lambda d: d["images"][0].update(width="x")), "ok"),
    "a huge size": (coco(lambda d: d["images"][0].update(width=10**30, height=10**30)), "ok"),
    "a box of infinity": (first_annotation(bbox=[0, 0, float("inf"), 1]), "neither a readable box"),
    "a box of NaN": (first_annotation(bbox=[float("nan")] * 4), "neither a readable box"),
    "a box far outside": (first_annotation(bbox=[10**6, 10**6, 5, 5]), "ok"),
    "a box of negative size": (first_annotation(bbox=[9, 9, -5, -5]), "outside"),
    "a mask of the wrong size": (rle([10**9], (10**5, 10**5)), "masks cannot be decoded"),
    "a mask of negative runs": (rle([-5, 261]), "masks cannot be decoded"),
    "a mask of too many runs": (rle([1] * 100_000), "masks cannot be decoded"),
    "a mask that is too short": (rle([5]), "masks cannot be decoded"),
    "a compressed mask of junk": (rle("~~~~~~~~oooooooo"), "masks cannot be decoded"),
    "a compressed mask without end": (rle("o" * 100_000), "masks cannot be decoded"),
    "a mask of words": (rle(["a", "b"]), "masks cannot be decoded"),
    "an outline of half a million corners": (first_annotation(segmentation=[[1.0, 2.0] * 500_000]), ""),
    "ten thousand outlines": (first_annotation(segmentation=[[1, 1, 5, 1, 5, 5]] * 10_000), "ok"),
    "an outline of lists": (first_annotation(segmentation=[[[1, 2], [3, 4]]]), "ok"),
    "a category that is a list": (first_annotation(category_id=[1]), "category that the file does not list"),
    "categories that are words": (coco(lambda d: d.update(categories=["a"])), "no categories"),
    "a category of a megabyte": (coco(lambda d: d["categories"][0].update(name="x" * (1 << 20))), "ok"),
    "supercategories that are not text": (coco(lambda d: d["categories"][0].update(supercategory=[{}])), "ok"),
    "a category that is a path": (coco(lambda d: d["categories"][0].update(name="../../x")), "ok"),
    "splits of lists": (coco(lambda d: d.update(split_config={"splits": {"0": ["val"]}})), ""),
    "a split share of a word": (coco(lambda d: d.update(split_config={"train_ratio": "x"})), "ratios between"),
    "an image root upwards": (coco(lambda d: d.update(storage_info={"image_root": "../../secrets"})), "ok"),
}


@pytest.mark.parametrize("case", JSONS)
def test_hostile_annotation_file_is_rejected_or_harmless(tmp_path, case):
    damage, expected = JSONS[case]
    outcome = run(tmp_path, damage, "annotations.json", split=SplitRequest(train_ratio=0.5))
    assert expected in outcome


@pytest.mark.parametrize("name", ["../../x", "-rf", "a\nb", "\x1b[2J", "é" * 80, "..", "a;b"])
def test_class_folder_with_hostile_name_is_accepted(tmp_path, name):
    name = name.replace("..", "_..").replace("/", "_")

    def damage(root: Path) -> None:
        for split in ("train", "val"):
            for cls in (name, "ok"):
                (root / "cls" / split / cls).mkdir(parents=True)
                (root / "cls" / split / cls / "x.jpg").write_bytes(jpeg(3))

    outcome = run(tmp_path, damage, "cls", task=Task.CLASSIFY)
    assert outcome == "ok"


def test_caches_and_arrays_beside_images_are_not_copied(tmp_path):
    def damage(root: Path) -> None:
        payload = b"\x80\x04cos\nsystem\n(S'touch /tmp/hostile-was-here'\ntR."
        for place in ("labels/train.cache", "labels/val.cache", "images/train/0.npy", "train.cache"):
            (root / place).write_bytes(payload)

    assert run(tmp_path, damage) == "ok"
