"""Detection of the dataset format and of the file that describes the dataset."""

from __future__ import annotations

import json

import pytest

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.datasets.findings import Report
from trainer.datasets.formats.detect import recognize
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.source.roots import Roots

YAML = "train: train\nnames: [{}]\n"


def coco(name, *, image="a.jpg"):
    document = {
        "images": [{"id": 1, "file_name": image, "width": 9, "height": 9}], "categories": [{"id": 1, "name": name}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}],
    }  # fmt: skip
    return json.dumps(document)


def recognized(root, files, entry=None, task=None):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    report = Report()
    tree = Tree(root, Roots(root).admit, report, StopSignal(), is_owned=False)
    return recognize(tree, root / entry if entry else None, task, report)


IMAGES = {"train/a.jpg": "", "train/a.txt": "0 .5 .5 .2 .2\n", "train/b.jpg": ""}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (IMAGES | {"data.yaml": YAML.format("y")}, ("y",)),
        (IMAGES | {"any.YML": YAML.format("y")}, ("y",)),
        (IMAGES | {"deep/er/set.yaml": "train: ../../train\nnames: [y]\n"}, ("y",)),
        (IMAGES | {"data.yaml": YAML.format("near"), "old/data.yaml": YAML.format("far")}, ("near",)),
        (IMAGES | {"data.yaml": YAML.format("usual"), "other.yaml": YAML.format("other")}, ("usual",)),
        (IMAGES | {"hyp.yaml": "lr0: 0.1\n", "mine.yaml": YAML.format("y")}, ("y",)),
        (IMAGES | {"classes.txt": "c\n"}, ("c",)),
        (IMAGES, None),
        ({"a.jpg": "", "annotations.json": coco("j")}, ("j",)),
        ({"a.jpg": "", "export.json": coco("j")}, ("j",)),
        ({"a.jpg": "", "annotations/x.json": coco("j"), "package.json": "{}"}, ("j",)),
        ({"a.jpg": "", "instances.json": coco("boxes"), "captions_annotations.json": "{}"}, ("boxes",)),
        # annotations.json is used if the images of the YAML have no label files
        ({"train/a.jpg": "", "data.yaml": YAML.format("y"), "annotations.json": coco("j")}, ("j",)),
        (IMAGES | {"data.yaml": YAML.format("y"), "annotations.json": coco("j")}, ("y",)),
        ({"cat/a.jpg": "", "dog/b.jpg": ""}, ("cat", "dog")),
        ({"train/cat/a.jpg": "", "train/dog/b.jpg": "", "val/cat/c.jpg": ""}, ("cat", "dog")),
    ],
)
def test_file_that_describes_dataset_is_found(tmp_path, files, names):
    assert recognized(tmp_path, files).names == names


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (None, ("box",)),
        (Task.DETECT, ("box",)),
        (Task.SEGMENT, ("outline",)),
        (Task.POSE, ("pose",)),
        (Task.OBB, ("turned",)),
    ],
)
def test_annotation_file_of_requested_task_is_used(tmp_path, task, names):
    files = {
        f"annotations_{word}.json": coco(name)
        for word, name in {"detection": "box", "segmentation": "outline", "pose": "pose", "obb": "turned"}.items()
    }
    assert recognized(tmp_path, files | {"a.jpg": ""}, task=task).names == names


def test_annotation_files_of_all_splits_become_one_dataset(tmp_path):
    files = {
        "train/_annotations.coco.json": coco("j", image="a.jpg"), "train/a.jpg": "",
        "valid/_annotations.coco.json": coco("j", image="b.jpg"), "valid/b.jpg": "",
    }  # fmt: skip
    assert {(s.name, s.split) for s in recognized(tmp_path, files).samples} == {
        ("train/a.jpg", "train"),
        ("valid/b.jpg", "val"),
    }


def test_class_folders_beside_yaml_are_used_if_classification_is_requested(tmp_path):
    files = {"train/cat/a.jpg": "", "train/dog/b.jpg": "", "data.yaml": "train: train\nval: val\nnames: [x]\n"}

    assert recognized(tmp_path, files, "data.yaml").names == ("x",)
    assert recognized(tmp_path, files, "data.yaml", Task.CLASSIFY).task is Task.CLASSIFY
    assert recognized(tmp_path, files, None, Task.CLASSIFY).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("files", "entry", "sign"),
    [
        (
            IMAGES | {"a.yaml": YAML.format("a"), "b.yaml": YAML.format("b")},
            None,
            r"several YAML files \(a.yaml, b.yaml\)",
        ),
        (
            {"a.jpg": "", "one.json": coco("j"), "two.json": coco("k")},
            None,
            r"several annotation files \(one.json, two.json\)",
        ),
        ({"train.txt": "a.jpg\n"}, "train.txt", "names the text file"),
        ({"readme.md": ""}, None, "No images were found"),
        (IMAGES | {"data.yaml": "- broken\n"}, None, "not a dataset YAML"),
        (IMAGES | {"x.json": "[]"}, "x.json", "x.json"),
    ],
)
def test_ambiguous_missing_or_invalid_dataset_is_rejected(tmp_path, files, entry, sign):
    with pytest.raises(DatasetError, match=sign):
        recognized(tmp_path, files, entry)
