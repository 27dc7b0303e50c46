"""The parts of a COCO or DICE document: categories, annotations, keypoints and the requested split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.core.dataset import SplitRequest, Task
from trainer.core.errors import DatasetError
from trainer.core.json_text import storable
from trainer.core.text import printable
from trainer.datasets.data_yaml import MAX_KEYPOINTS
from trainer.datasets.findings import Report
from trainer.datasets.samples import SPLIT_WORDS, SPLITS
from trainer.datasets.untrusted import read_file

Object = Mapping[str, Any]
MAX_JSON_BYTES = 1 << 30  # bytes; COCO's own training annotations are 0.45 GB
BACKGROUND = "__background__"
DEFAULT_SPLIT = SplitRequest(train_ratio=0.8, seed=42)  # the default of DICE for a file without split_config


def load(path: Path) -> dict[str, Any]:
    """Return the content of an annotation file. Raises `DatasetError`."""
    name = printable(path.name)
    try:
        document = json.loads(read_file(path, MAX_JSON_BYTES).removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError:
        raise DatasetError(f"{name} is not UTF-8 text.") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{name} is not valid JSON: {printable(str(error))}.") from None
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise DatasetError(f"{name} is not a COCO file: it must be an object with images, annotations and categories.")
    return document


def objects(value: Any) -> list[Object]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def all_categories(document: Object) -> list[Object]:
    return objects(document.get("categories")) or objects(document.get("classes"))


def categories(document: Object) -> list[Object]:
    """Return the categories that are classes, in the order of the file."""
    found = [category for category in all_categories(document) if category.get("name") != BACKGROUND]
    above = {str(category.get("supercategory")) for category in found}
    used = {str(category_id(one)) for one in _annotations(document)}
    # Roboflow's first category is the project, not a class: no annotation uses it, and other categories belong to it
    return [
        c
        for c in found
        if str(c.get("id")) in used or str(c.get("name")) not in above or c.get("supercategory") != "none"
    ]


def _annotations(document: Object) -> Iterator[Object]:
    yield from objects(document.get("annotations"))
    for image in objects(document["images"]):
        yield from nested_annotations(image)


def nested_annotations(image: Object) -> list[Object]:
    single = image.get("annotation")
    return objects(image.get("annotations")) + ([single] if isinstance(single, dict) else [])


def category_id(annotation: Object) -> Any:
    return annotation.get("category_id", annotation.get("class_id"))


def all_names(documents: Sequence[Object]) -> list[str]:
    names: dict[str, None] = {}
    for document in documents:
        for category in categories(document):
            names.setdefault(class_name(category))
    if not names:
        raise DatasetError("The annotation file has no categories. It must list the id and name of each class.")
    return list(names)


def class_name(category: Object) -> str:
    return storable(" ".join(str(category.get("name") or f"class{category.get('id')}").split())[:200])


def guess_task(documents: Sequence[Object]) -> Task:
    """Return the task that fits the annotations.

    pose: a category has keypoints. classify: no annotation has a box or outline. segment: all annotations have
    outlines, and not all outlines are rectangles. detect: otherwise.
    """
    annotations = [one for document in documents for one in _annotations(document) if not one.get("iscrowd")]
    if any(category.get("keypoints") for document in documents for category in categories(document)):
        return Task.POSE
    if annotations and all("bbox" not in one and "segmentation" not in one for one in annotations):
        return Task.CLASSIFY
    outlined = bool(annotations) and all(one.get("segmentation") for one in annotations)
    return Task.SEGMENT if outlined and not all(_is_rectangle(one) for one in annotations) else Task.DETECT


def _is_rectangle(annotation: Object) -> bool:
    """Return whether the outline is an axis-aligned rectangle."""
    parts = annotation["segmentation"]
    outline = parts[0] if isinstance(parts, list) and len(parts) == 1 else None
    if not isinstance(outline, list) or not all(isinstance(number, int | float) for number in outline):
        return False
    return len(outline) in (8, 10) and all(len({round(n, 2) for n in outline[axis::2]}) == 2 for axis in (0, 1))


def keypoints(documents: Sequence[Object], report: Report) -> tuple[tuple[int, int] | None, tuple[int, ...] | None]:
    """Return kpt_shape and flip_idx. Each of them is None if the categories do not define it."""
    lists = {
        tuple(map(str, category["keypoints"]))
        for document in documents
        for category in categories(document)
        if isinstance(category.get("keypoints"), list) and category["keypoints"]
    }
    if len({len(names) for names in lists}) != 1:
        problem = "For the task pose, all categories must have the same number of keypoints."
        report.add("kpt_shape", problem=problem)
        return None, None
    names = lists.pop()
    if len(names) > MAX_KEYPOINTS:
        report.add("kpt_shape", problem=f"A category has {len(names)} keypoints; the limit is {MAX_KEYPOINTS}.")
        return None, None
    flip = tuple(names.index(other) if (other := _mirrored(name)) in names else -1 for name in names)
    return (len(names), 3), flip if sorted(flip) == list(range(len(names))) else None


def _mirrored(name: str) -> str:
    for word, other in (("left", "right"), ("right", "left"), ("Left", "Right"), ("Right", "Left")):
        if word in name:
            return name.replace(word, other)
    return name


def split_request(document: Object) -> SplitRequest:
    """Return the split that `split_config` requests, or DEFAULT_SPLIT. Raises `DatasetError` for invalid ratios."""
    config = document.get("split_config")
    if not isinstance(config, dict):
        return DEFAULT_SPLIT
    splits = config.get("splits")
    split_of = {word: split for split in SPLITS for word in SPLIT_WORDS[split]}
    words = splits.items() if isinstance(splits, dict) else ()
    assigned = {str(key): split_of.get(str(word).lower(), "train") for key, word in words}
    ratio = config.get("default_ratio", config.get("ratio"))
    train = ratio[0] if isinstance(ratio, list) and ratio else config.get("train_ratio", DEFAULT_SPLIT.train_ratio)
    test = ratio[2] if isinstance(ratio, list) and len(ratio) > 2 else config.get("test_ratio", 0.0)
    seed = config.get("seed", DEFAULT_SPLIT.seed)
    numbers = isinstance(train, int | float) and isinstance(test, int | float) and isinstance(seed, int)
    if not numbers or not 0 < train < 1 or not 0 <= test < 1 - train + 1e-9:
        raise DatasetError("split_config must have ratios between 0 and 1, for example default_ratio [0.8, 0.2].")
    return SplitRequest(train_ratio=float(train), test_ratio=float(test), seed=seed, assigned=assigned)
