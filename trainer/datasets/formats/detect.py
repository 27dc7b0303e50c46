"""Recognize the format of a source tree, and find the file that describes the dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.core.text import printable
from trainer.datasets.data_yaml import load_yaml
from trainer.datasets.findings import Report
from trainer.datasets.formats.class_folders import looks_like_classes, read_classes
from trainer.datasets.formats.coco import AnnotationFile, read_coco
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.formats.yolo import read_yolo
from trainer.datasets.samples import SPLIT_WORDS, SPLITS, RecognizedDataset

YAML_SUFFIXES = (".yaml", ".yml")
USUAL_NAMES = ("data", "dataset")
MAX_DEPTH = 3  # levels of folders that are searched for a YAML or an annotation file
MAX_FOLDERS = 200  # a folder with more subfolders is not searched: its subfolders are probably classes

# words in the names of annotation files: DICE uses the name of the task, COCO the kind of annotation
MADE_FOR = {
    Task.DETECT: ("detection", "instances"),
    Task.SEGMENT: ("segmentation", "instances"),
    Task.POSE: ("pose", "person_keypoints", "keypoints"),
    Task.CLASSIFY: ("classification",),
    Task.OBB: ("obb",),
}
OTHER_PURPOSES = ("captions", "panoptic", "stuff")


def recognize(tree: Tree, entry: Path | None, task: Task | None, report: Report) -> RecognizedDataset:
    """Return the dataset in a tree. `entry` is the file or folder that the reference names, or None.

    Raises `DatasetError` if the tree has no dataset or several datasets.
    """
    if entry is not None and entry.is_file():
        return _from_file(tree, entry, task, report)
    home = entry or tree.root
    if task is Task.CLASSIFY and looks_like_classes(tree, home):
        return read_classes(tree, home)
    below = list(_files_below(tree, str(home), 0))
    yaml, annotations = _dataset_yaml(tree, below), _annotations(tree, below, task)
    if yaml:
        found = read_yolo(tree, yaml, report)
        if not annotations or any(sample.label for sample in found.samples):
            return found
    if annotations:
        return read_coco(tree, annotations, task, report)
    if looks_like_classes(tree, home):
        return read_classes(tree, home)
    found = read_yolo(tree, None, report, home)
    if not found.samples:
        raise DatasetError(
            f"No images were found in {printable(home.name)}; a dataset needs a data.yaml or a folder of images."
        )
    return found


def _from_file(tree: Tree, entry: Path, task: Task | None, report: Report) -> RecognizedDataset:
    suffix = entry.suffix.lower()
    if suffix == ".json":
        return read_coco(tree, [AnnotationFile(entry, None)], task, report)
    if suffix == ".txt":
        raise DatasetError(
            f"data_yaml names the text file {printable(entry.name)}. Name the folder or the data.yaml of the dataset."
        )
    if task is Task.CLASSIFY and looks_like_classes(tree, entry.parent):
        return read_classes(tree, entry.parent)
    return read_yolo(tree, entry, report)


def _files_below(tree: Tree, folder: str, depth: int) -> Iterator[tuple[int, Path]]:
    listing = tree.listing(folder)
    for name in listing.others:
        yield depth, Path(folder) / name
    for name in listing.folders if depth < MAX_DEPTH and len(listing.folders) < MAX_FOLDERS else ():
        yield from _files_below(tree, f"{folder}/{name}", depth + 1)


def _dataset_yaml(tree: Tree, below: Sequence[tuple[int, Path]]) -> Path | None:
    """Return the dataset YAML nearest to the top folder, preferably data.yaml or dataset.yaml, or None."""
    found = [(depth, path) for depth, path in below if _is_dataset_yaml(path)]
    if not found:
        return None
    depth = min(depth for depth, _ in found)
    nearest = [path for level, path in found if level == depth]
    for name in USUAL_NAMES:
        usual = [path for path in nearest if path.stem.lower() == name]
        if len(usual) == 1:
            return usual[0]
    if len(nearest) > 1:
        names = ", ".join(printable(tree.relative(str(path))) for path in nearest[:10])
        raise DatasetError(f"The dataset has several YAML files ({names}); name one of them in data_yaml.")
    return nearest[0]


def _is_dataset_yaml(path: Path) -> bool:
    if not path.name.lower().endswith(YAML_SUFFIXES):
        return False
    try:
        values = load_yaml(path, Report())
    except DatasetError:
        return path.stem.lower() in USUAL_NAMES  # read_yolo will report the error
    return bool(values.keys() & {"names", "train", "nc"})


def _annotations(tree: Tree, below: Sequence[tuple[int, Path]], task: Task | None) -> list[AnnotationFile]:
    """Return the annotation files of the dataset: one file, or one file per split."""
    found = [path for _, path in below if path.suffix.lower() == ".json" and _is_annotations(path)]
    if not found:
        found = [path for depth, path in below if not depth and path.suffix.lower() == ".json"]
    for purpose in MADE_FOR.get(task or Task.DETECT, ()):
        made_for_it = [path for path in found if purpose in path.name.lower()]
        if made_for_it:
            found = made_for_it
            break
    else:
        purposes = (*OTHER_PURPOSES, *(word for words in MADE_FOR.values() for word in words))
        found = [path for path in found if not any(word in path.name.lower() for word in purposes)] or found
    files = [AnnotationFile(path, _split_of(path) if len(found) > 1 else None) for path in found]
    splits = [file.split for file in files]
    if len(files) > 1 and (None in splits or len(set(splits)) < len(splits)):
        names = ", ".join(printable(tree.relative(str(file.path))) for file in files[:10])
        raise DatasetError(f"The dataset has several annotation files ({names}); name one of them in data_yaml.")
    return files


def _is_annotations(path: Path) -> bool:
    return bool(re.search(r"annotation|instances|keypoints|coco", path.name, re.IGNORECASE)) or (
        path.parent.name.lower() == "annotations"
    )


def _split_of(path: Path) -> str | None:
    words = set(re.split(r"[^a-z]+", path.stem.lower())) | {path.parent.name.lower()}
    return next((split for split in SPLITS if words & set(SPLIT_WORDS[split])), None)
