"""COCO and DICE files in all common variants."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask

from tests.dataset_painter import drawn, prepared
from trainer.core.dataset import SplitRequest, Task
from trainer.core.errors import DatasetError

SIZE = 32


def pixel_box(number: int) -> list[float]:
    x, y, w, h = (share * SIZE for share in drawn(number).box)
    return [x - w / 2, y - h / 2, w, h]


def document(count: int = 10, **more) -> dict:
    """Return a document whose category ids are unordered integers with gaps."""
    return {
        "images": [{"id": n + 100, "file_name": f"{n:04}.jpg", "width": SIZE, "height": SIZE} for n in range(count)],
        "annotations": [
            {"id": n, "image_id": n + 100, "category_id": (9, 4)[n % 2], "bbox": pixel_box(n), "iscrowd": 0}
            for n in range(count)
        ],
        "categories": [{"id": 9, "name": "square"}, {"id": 4, "name": "disc"}],
    } | more


def write(root: Path, content: dict, name: str = "annotations.json", images: str = "images", count: int = 10) -> Path:
    (root / images).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        drawn(number).image.save(root / images / f"{number:04}.jpg")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def rows(view: Path) -> dict[str, list[list[float]]]:
    return {
        path.stem: [[float(token) for token in line.split()] for line in path.read_text().splitlines()]
        for path in sorted((view / "labels").rglob("*.txt"))
    }


def test_boxes_and_classes_are_read_and_images_are_split_by_default(tmp_path):
    entry = write(tmp_path / "set", document())
    result = prepared(entry, tmp_path / "run")
    assert (result.task, result.names, dict(result.images)) == (Task.DETECT, ("square", "disc"), {"train": 8, "val": 2})
    found = rows(tmp_path / "run/view")
    for number in range(10):
        assert found[f"{number:04}"] == [pytest.approx([number % 2, *drawn(number).box], abs=1e-6)]


@pytest.mark.parametrize("size", [10**400, -1, 0])
def test_impossible_image_size_in_annotation_file_is_ignored(tmp_path, size):
    content = document()
    content["images"][0] |= {"width": size, "height": size}
    prepared(write(tmp_path / "set", content), tmp_path / "run")
    assert rows(tmp_path / "run/view")["0000"] == [pytest.approx([0, *drawn(0).box], abs=1e-6)]


def test_class_name_with_broken_unicode_is_repaired(tmp_path):
    content = document(categories=[{"id": 9, "name": "square\ud800"}, {"id": 4, "name": "disc"}])
    assert prepared(write(tmp_path / "set", content), tmp_path / "run").names == ("square\ufffd", "disc")


def test_folder_with_annotation_file_is_recognized(tmp_path):
    write(tmp_path / "set", document())
    assert dict(prepared(tmp_path / "set", tmp_path / "run").images) == {"train": 8, "val": 2}


@pytest.mark.parametrize("key", [str, int])
def test_embedded_split_matches_image_ids_as_text_or_numbers(tmp_path, key):
    splits = {str(n + 100): ("val" if n < 3 else "train") for n in range(9)}
    content = document(split_config={"method": "manual", "splits": splits})
    for image in content["images"]:
        image["id"] = key(image["id"])
    result = prepared(write(tmp_path / "set", content), tmp_path / "run")
    assert dict(result.images) == {"train": 7, "val": 3}
    assert {path.stem for path in (tmp_path / "run/view/images/val").iterdir()} == {"0000", "0001", "0002"}


def test_requested_split_overrides_embedded_split(tmp_path):
    content = document(split_config={"splits": {"100": "val"}})
    split = SplitRequest(train_ratio=0.8, assigned={"105": "val", "106": "test"})
    result = prepared(write(tmp_path / "set", content), tmp_path / "run", split=split)
    assert dict(result.images) == {"train": 8, "val": 1, "test": 1}


@pytest.mark.parametrize(
    "config",
    [{"default_ratio": [0.5, 0.5]}, {"ratio": [0.5, 0.5], "seed": 3}, {"train_ratio": 0.5, "val_ratio": 0.5}],
)
def test_embedded_split_ratios_are_used(tmp_path, config):
    result = prepared(write(tmp_path / "set", document(split_config=config)), tmp_path / "run")
    assert dict(result.images) == {"train": 5, "val": 5}


def test_nested_annotations_and_background_class_of_dice_are_read(tmp_path):
    content = {
        "classes": [{"id": 0, "name": "__background__"}, {"id": 1, "name": "square"}, {"id": 2, "name": "disc"}],
        "storage_info": {"image_root": "images/"},
        "images": [
            {
                "id": n,
                "file_name": f"{n:04}.jpg",
                "width": SIZE,
                "height": SIZE,
                "annotations": [
                    {"class_id": 0 if n == 9 else n % 2 + 1, "bbox": pixel_box(n), "class_name": "x"},
                ],
            }
            for n in range(10)
        ],
    }
    result = prepared(write(tmp_path / "set", content), tmp_path / "run")
    assert result.names == ("square", "disc")
    found = rows(tmp_path / "run/view")
    assert found["0009"] == []
    assert found["0001"][0][0] == 1


def test_polygons_are_kept_and_masks_become_polygons(tmp_path):
    content = document()
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[8:24, 4:20] = 1
    packed = coco_mask.encode(mask)
    runs = [8 + 4 * SIZE, *[16, 16] * 15, 16, SIZE * SIZE - (19 * SIZE + 24)]
    shapes = [
        [[2, 2, 12, 2, 14, 9, 3, 12]],
        {"size": [SIZE, SIZE], "counts": packed["counts"].decode()},
        {"size": [SIZE, SIZE], "counts": runs},
        [[2, 2, 8, 2, 8, 8], [20, 20, 28, 20, 28, 28]],
    ]
    for number, annotation in enumerate(content["annotations"]):
        annotation["segmentation"] = shapes[number % 4]
    result = prepared(write(tmp_path / "set", content), tmp_path / "run")
    assert result.task is Task.SEGMENT
    found = rows(tmp_path / "run/view")
    assert found["0000"][0][1:] == pytest.approx([n / SIZE for n in (2, 2, 12, 2, 14, 9, 3, 12)])
    for name in ("0001", "0002"):
        xs, ys = found[name][0][1::2], found[name][0][2::2]
        assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx((4 / SIZE, 19 / SIZE, 8 / SIZE, 23 / SIZE))
    assert len(found["0003"][0]) == 1 + 2 * 8  # 3 corners of each polygon, and 2 points that join the polygons


def test_polygons_equal_to_boxes_are_read_as_boxes(tmp_path):
    content = document()
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    assert prepared(write(tmp_path / "set", content), tmp_path / "run").task is Task.DETECT


def test_keypoints_and_flip_idx_are_read(tmp_path):
    content = document(
        categories=[
            {"id": 9, "name": "square", "keypoints": ["nose", "left_eye", "right_eye"]},
            {"id": 4, "name": "disc"},
        ]
    )
    for annotation in content["annotations"]:
        annotation["keypoints"] = [16, 8, 2, 4, 4, 1, 0, 0, 0]
    result = prepared(write(tmp_path / "set", content), tmp_path / "run")
    data = yaml.safe_load(result.data.read_text())
    assert (result.task, data["kpt_shape"], data["flip_idx"]) == (Task.POSE, [3, 3], [0, 2, 1])
    assert rows(tmp_path / "run/view")["0000"][0][5:] == pytest.approx([0.5, 0.25, 2, 0.125, 0.125, 1, 0, 0, 0])


def test_annotation_file_of_each_split_is_read_for_coco_and_roboflow(tmp_path):
    write(tmp_path / "coco", document(), "annotations/instances_train2017.json", "train2017")
    write(tmp_path / "coco", document(3), "annotations/instances_val2017.json", "val2017", 3)
    (tmp_path / "coco/annotations/captions_val2017.json").write_text("{}")
    assert dict(prepared(tmp_path / "coco", tmp_path / "v1").images) == {"train": 10, "val": 3}
    write(tmp_path / "robo", document(), "train/_annotations.coco.json", "train")
    write(tmp_path / "robo", document(4), "valid/_annotations.coco.json", "valid", 4)
    result = prepared(tmp_path / "robo", tmp_path / "v2")
    assert dict(result.images) == {"train": 10, "val": 4}
    assert "split_leak" in {finding.code for finding in result.findings}


def test_dice_file_of_requested_task_is_used(tmp_path):
    write(tmp_path / "set", document(), "annotations_detection.json")
    outlined = document()
    for annotation in outlined["annotations"]:
        annotation["segmentation"] = [[2, 2, 12, 2, 14, 9, 3, 12]]
    write(tmp_path / "set", outlined, "annotations_segmentation.json")
    assert prepared(tmp_path / "set", tmp_path / "v1").task is Task.DETECT
    assert prepared(tmp_path / "set", tmp_path / "v2", task=Task.SEGMENT).task is Task.SEGMENT


def test_classes_of_whole_images_become_classification_dataset(tmp_path):
    content = document()
    del content["annotations"]
    for number, image in enumerate(content["images"]):
        image["annotation"] = {"class_id": (9, 4)[number % 2], "confidence": 1.0}
    result = prepared(write(tmp_path / "set", content), tmp_path / "run")
    assert result.task is Task.CLASSIFY
    assert {path.name for path in (tmp_path / "run/view/train").iterdir()} == {"0_square", "1_disc"}


def test_crowd_annotations_and_annotations_of_unknown_images_are_reported(tmp_path):
    content = document()
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["image_id"] = 7777
    result = prepared(write(tmp_path / "set", content), tmp_path / "run")
    assert {"coco_crowd", "coco_orphan"} <= {finding.code for finding in result.findings}
    assert rows(tmp_path / "run/view")["0000"] == []


@pytest.mark.parametrize(
    ("spoil", "sign"),
    [
        (lambda c: c["images"].append({"id": 1, "file_name": "gone.jpg"}), "1 images .* do not exist.*gone.jpg"),
        (lambda c: c["annotations"][0].update(category_id=77), "category that the file does not list.*77"),
        (lambda c: c["annotations"][0].pop("bbox"), "neither a readable box nor a readable outline"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "x", 4]), "neither a readable box nor a readable outline"),
        (
            lambda c: c["annotations"][0].update(bbox=[float("inf"), 2, 3, 4]),
            "neither a readable box nor a readable outline",
        ),
        (lambda c: c["annotations"][0].update(segmentation={"size": [9, 9], "counts": [81]}, bbox=None), "masks"),
        (lambda c: c["images"].append(dict(c["images"][0])), "listed twice"),
        (lambda c: c["images"][0].pop("file_name"), "no file_name"),
        (lambda c: c.update(categories=[]), "no categories"),
        (lambda c: c.update(images="all"), "not a COCO file"),
        (lambda c: c.update(split_config={"train_ratio": 3}), "ratios between 0 and 1"),
    ],
)
def test_invalid_annotation_file_is_rejected_with_reason(tmp_path, spoil, sign):
    content = document()
    spoil(content)
    entry = write(tmp_path / "set", content)
    with pytest.raises(DatasetError, match=sign):
        prepared(entry, tmp_path / "run")


def test_images_are_found_by_name_in_any_folder(tmp_path):
    content = document()
    for image in content["images"]:
        image["file_name"] = "C:\\export\\" + image["file_name"]
    entry = write(tmp_path / "set", content, images="somewhere/deep")
    assert sum(prepared(entry, tmp_path / "run").images.values()) == 10


def test_ambiguous_image_name_is_rejected_unless_images_folder_contains_it(tmp_path):
    write(tmp_path / "set", document(), images="a")
    entry = write(tmp_path / "set", document(), images="b")
    with pytest.raises(DatasetError, match=r"0000.jpg matches a/0000.jpg and b/0000.jpg; add the folder"):
        prepared(entry, tmp_path / "run")
    write(tmp_path / "set", document(), images="images")
    assert sum(prepared(entry, tmp_path / "run2").images.values()) == 10
