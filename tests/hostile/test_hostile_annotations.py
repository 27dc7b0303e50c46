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
    "path in /etc": ("/etc/passwd\n", "do not exist"),
    "path traversal": ("../../secrets/secret.jpg\n", "do not exist"),
    "absolute path outside the dataset": ("ROOT/../../secrets/secret.jpg\n", "do not exist"),
    "URLs": ("http://169.254.169.254/a.jpg\nfile:///etc/passwd\n", "do not exist"),
    "one line of 1 MiB": ("images/train/" + "a" * (1 << 20) + ".jpg\n", "do not exist"),
    "name of 10,000 characters": ("a/" * 5000 + "b.jpg\n", "do not exist"),
    "NUL bytes": ("images/train/0.jpg\0\n", "do not exist"),
    "invalid Unicode": ("images/train/\udcff\udcfe.jpg\n", "do not exist"),
    "control characters": ("images/train/\x1b[2J.jpg\n", "do not exist"),
    "command-line options": ("--exec=touch\n-rf\n", "do not exist"),
    "one image 100,000 times": ("images/train/0.jpg\n" * 100_000, "ok"),
    "list that contains itself": ("train.txt\n", "do not exist"),
    "empty list": ("\n\n", "names no images"),
    "folders instead of images": ("images/train/\nimages/train/.\n", "do not exist"),
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
    "deeply nested lists": (with_json("[" * 100_000), "not valid JSON"),
    "deeply nested objects": (with_json('{"images":' * 100_000), "not valid JSON"),
    "binary content": (with_json(bytes(range(256))), ""),
    "number with a million digits": (with_json('{"images": [' + "9" * (1 << 20) + "]}"), "not valid JSON"),
    "list instead of an object": (with_json("[]"), "not a COCO file"),
    "no images": (with_json('{"images": [], "categories": [{"id": 1, "name": "a"}]}'), "no images"),
    "text instead of image objects": (
        with_json('{"images": ["a"], "categories": [{"id": 1, "name": "a"}]}'),
        "no images",
    ),
    "file name with path traversal": (
        coco(lambda d: d["images"][0].update(file_name="../../secrets/secret.jpg")),
        "do not exist",
    ),
    "file name in /etc": (coco(lambda d: d["images"][0].update(file_name="/etc/passwd")), "do not exist"),
    "file name of dots only": (coco(lambda d: d["images"][0].update(file_name="../..")), "do not exist"),
    "list as file name": (coco(lambda d: d["images"][0].update(file_name=["a"])), "no file_name"),
    "file name of 1 MiB": (coco(lambda d: d["images"][0].update(file_name="a" * (1 << 20))), "do not exist"),
    "image size of zero": (coco(lambda d: d["images"][0].update(width=0, height=-5)), "ok"),
    "text as image size": (coco(lambda d: d["images"][0].update(width="x")), "ok"),
    "huge image size": (coco(lambda d: d["images"][0].update(width=10**30, height=10**30)), "ok"),
    "box with infinity": (first_annotation(bbox=[0, 0, float("inf"), 1]), "neither a readable box"),
    "box with NaN": (first_annotation(bbox=[float("nan")] * 4), "neither a readable box"),
    "box far outside the image": (first_annotation(bbox=[10**6, 10**6, 5, 5]), "ok"),
    "box of negative size": (first_annotation(bbox=[9, 9, -5, -5]), "outside"),
    "mask of wrong size": (rle([10**9], (10**5, 10**5)), "masks cannot be decoded"),
    "mask with negative run length": (rle([-5, 261]), "masks cannot be decoded"),
    "mask with too many runs": (rle([1] * 100_000), "masks cannot be decoded"),
    "mask that is too short": (rle([5]), "masks cannot be decoded"),
    "compressed mask with random text": (rle("~~~~~~~~oooooooo"), "masks cannot be decoded"),
    "compressed mask without end": (rle("o" * 100_000), "masks cannot be decoded"),
    "mask with text as run lengths": (rle(["a", "b"]), "masks cannot be decoded"),
    "outline with 500,000 corners": (first_annotation(segmentation=[[1.0, 2.0] * 500_000]), ""),
    "10,000 outlines": (first_annotation(segmentation=[[1, 1, 5, 1, 5, 5]] * 10_000), "ok"),
    "outline of nested lists": (first_annotation(segmentation=[[[1, 2], [3, 4]]]), "ok"),
    "list as category id": (first_annotation(category_id=[1]), "category that the file does not list"),
    "text instead of category objects": (coco(lambda d: d.update(categories=["a"])), "no categories"),
    "category name of 1 MiB": (coco(lambda d: d["categories"][0].update(name="x" * (1 << 20))), "ok"),
    "supercategory that is not text": (coco(lambda d: d["categories"][0].update(supercategory=[{}])), "ok"),
    "path as category name": (coco(lambda d: d["categories"][0].update(name="../../x")), "ok"),
    "lists as split names": (coco(lambda d: d.update(split_config={"splits": {"0": ["val"]}})), ""),
    "text as split ratio": (coco(lambda d: d.update(split_config={"train_ratio": "x"})), "ratios between"),
    "image root with path traversal": (coco(lambda d: d.update(storage_info={"image_root": "../../secrets"})), "ok"),
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
