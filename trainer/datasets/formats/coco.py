"""Read COCO and DICE datasets: JSON files with images, categories and annotations, converted to YOLO rows.

A class number is the position in the list of categories, not the category id; `__background__` is skipped. DICE adds
annotations nested in images, `classes` instead of `categories`, and `split_config`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.core.dataset import SplitRequest, Task
from trainer.core.errors import DatasetError
from trainer.core.text import printable
from trainer.datasets.findings import Report
from trainer.datasets.formats.coco_geometry import Picture, row_of
from trainer.datasets.formats.coco_images import Pictures
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.images.header import facts
from trainer.datasets.samples import SPLIT_WORDS, SPLITS, Found, Sample
from trainer.datasets.untrusted import read_file

LARGEST_JSON = 1 << 30  # bytes; COCO's own training annotations are 0.45 GB
BACKGROUND = "__background__"
DEFAULT_SPLIT = SplitRequest(train_ratio=0.8, seed=42)  # the default of DICE for a file without split_config
Object = Mapping[str, Any]


@dataclass(frozen=True)
class AnnotationFile:
    """A JSON file, and the split that its path implies, if any."""

    path: Path
    split: str | None


def read_coco(tree: Tree, files: Sequence[AnnotationFile], task: Task | None, report: Report) -> Found:
    """Return the dataset in annotation files, for `task` or, if None, for the task that fits the annotations.

    Problems of single images and annotations go into `report`. Raises `DatasetError` when a file cannot be read.
    """
    documents = [(file, _load(file.path)) for file in files]
    names = _all_names([document for _, document in documents])
    task = task or _guess(documents)
    pictures = Pictures(tree)
    kpt_shape, flip_idx = (
        _keypoints([document for _, document in documents], report) if task is Task.POSE else (None, None)
    )
    samples: list[Sample] = []
    for file, document in documents:
        converter = _Converter(file, document, names, task, kpt_shape, pictures, report)
        for number, sample in enumerate(converter.samples()):
            if number % 256 == 0:
                tree.stop.raise_if_set()
            samples.append(sample)
    return Found(
        samples=samples,
        names=tuple(names),
        task=task,
        kpt_shape=kpt_shape,
        flip_idx=flip_idx,
        split=_split_request(documents[0][1]) if len(documents) == 1 else None,
    )


def _load(path: Path) -> dict[str, Any]:
    name = printable(path.name)
    try:
        document = json.loads(read_file(path, LARGEST_JSON).removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError:
        raise DatasetError(f"{name} is not UTF-8 text.") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{name} is not valid JSON: {printable(str(error))}.") from None
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise DatasetError(f"{name} is not a COCO file: it must be an object with images, annotations and categories.")
    return document


def _objects(value: Any) -> list[Object]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _categories(document: Object) -> list[Object]:
    """Return the categories that are classes, in order."""
    found = _objects(document.get("categories")) or _objects(document.get("classes"))
    found = [category for category in found if category.get("name") != BACKGROUND]
    above = {str(category.get("supercategory")) for category in found}
    used = {str(_category_id(one)) for one in _annotations(document)}
    # Roboflow puts the project first: an unused category that is the supercategory of all others
    return [
        c
        for c in found
        if str(c.get("id")) in used or str(c.get("name")) not in above or c.get("supercategory") != "none"
    ]


def _annotations(document: Object) -> Iterator[Object]:
    yield from _objects(document.get("annotations"))
    for image in _objects(document["images"]):
        yield from _nested(image)


def _nested(image: Object) -> list[Object]:
    single = image.get("annotation")
    return _objects(image.get("annotations")) + ([single] if isinstance(single, dict) else [])


def _category_id(annotation: Object) -> Any:
    return annotation.get("category_id", annotation.get("class_id"))


def _all_names(documents: Sequence[Object]) -> list[str]:
    names: dict[str, None] = {}
    for document in documents:
        for category in _categories(document):
            names.setdefault(_name(category))
    if not names:
        raise DatasetError("The annotation file has no categories. It must list the id and name of each class.")
    return list(names)


def _name(category: Object) -> str:
    return " ".join(str(category.get("name") or f"class{category.get('id')}").split())[:200]


def _guess(documents: Sequence[tuple[AnnotationFile, Object]]) -> Task:
    """Return pose for categories with keypoints, segment if all annotations have outlines that are not just their boxes."""
    annotations = [one for _, document in documents for one in _annotations(document) if not one.get("iscrowd")]
    if any(category.get("keypoints") for _, document in documents for category in _categories(document)):
        return Task.POSE
    if annotations and all("bbox" not in one and "segmentation" not in one for one in annotations):
        return Task.CLASSIFY
    outlined = bool(annotations) and all(one.get("segmentation") for one in annotations)
    return Task.SEGMENT if outlined and not all(_is_own_box(one) for one in annotations) else Task.DETECT


def _is_own_box(annotation: Object) -> bool:
    parts = annotation["segmentation"]
    return (
        isinstance(parts, list)
        and len(parts) == 1
        and isinstance(parts[0], list)
        and len(parts[0]) in (8, 10)
        and (
            len({round(x, 2) for x in parts[0][0::2]}) == 2 == len({round(y, 2) for y in parts[0][1::2]})
            if all(isinstance(number, int | float) for number in parts[0])
            else False
        )
    )


def _keypoints(
    documents: Sequence[Object],
    report: Report,
) -> tuple[tuple[int, int] | None, tuple[int, ...] | None]:
    lists = {
        tuple(map(str, category["keypoints"]))
        for document in documents
        for category in _categories(document)
        if isinstance(category.get("keypoints"), list) and category["keypoints"]
    }
    if len({len(names) for names in lists}) != 1:
        report.error("kpt_shape", "For pose all categories must have the same number of keypoints.")
        return None, None
    names = lists.pop()
    other = [_mirrored(name) for name in names]
    flip = tuple(names.index(name) for name in other) if set(other) == set(names) == {*names} else None
    if flip and sorted(flip) != list(range(len(names))):
        flip = None
    return (len(names), 3), flip


def _mirrored(name: str) -> str:
    for left, right in (("left", "right"), ("Left", "Right")):
        if left in name:
            return name.replace(left, right)
        if right in name:
            return name.replace(right, left)
    return name


def _split_request(document: Object) -> SplitRequest:
    config = document.get("split_config")
    if not isinstance(config, dict):
        return DEFAULT_SPLIT
    splits = config.get("splits")
    assigned = {str(key): _split_name(value) for key, value in splits.items()} if isinstance(splits, dict) else {}
    ratio = config.get("default_ratio", config.get("ratio"))
    train = ratio[0] if isinstance(ratio, list) and ratio else config.get("train_ratio", DEFAULT_SPLIT.train_ratio)
    test = ratio[2] if isinstance(ratio, list) and len(ratio) > 2 else config.get("test_ratio", 0.0)
    seed = config.get("seed", DEFAULT_SPLIT.seed)
    numbers = isinstance(train, int | float) and isinstance(test, int | float) and isinstance(seed, int)
    if not numbers or not 0 < train < 1 or not 0 <= test < 1 - train + 1e-9:
        raise DatasetError("split_config must have shares between 0 and 1, for example default_ratio [0.8, 0.2].")
    return SplitRequest(train_ratio=float(train), test_ratio=float(test), seed=seed, assigned=assigned)


class _Converter:
    """Converts one annotation file to samples."""

    def __init__(
        self,
        file: AnnotationFile,
        document: Object,
        names: Sequence[str],
        task: Task,
        kpt_shape: tuple[int, int] | None,
        pictures: Pictures,
        report: Report,
    ) -> None:
        self._file, self._document, self._task, self._kpt_shape = file, document, task, kpt_shape
        self._pictures, self._report = pictures, report
        place = {name: index for index, name in enumerate(names)}
        self._class_of = {str(c.get("id")): place[_name(c)] for c in _categories(document)}
        self._class_named = place
        everything = _objects(document.get("categories")) or _objects(document.get("classes"))
        self._ignored = {str(c.get("id")) for c in everything if c.get("name") == BACKGROUND}

    def samples(self) -> Iterator[Sample]:
        by_image: dict[str, list[Object]] = defaultdict(list)
        for annotation in _objects(self._document.get("annotations")):
            by_image[str(annotation.get("image_id"))].append(annotation)
        seen: set[str] = set()
        for image in _objects(self._document["images"]):
            key = str(image.get("id"))
            sample = self._sample(image, key, by_image.pop(key, []) + _nested(image))
            if sample and sample.name in seen:
                self._report.error(
                    "coco_duplicate_image", "{n} images are listed twice in the annotation file", sample.name
                )
            elif sample:
                seen.add(sample.name)
                yield sample
        for key, orphans in by_image.items():
            self._report.warning(
                "coco_orphan",
                "{n} annotations refer to no image of the file",
                f"image_id {key}",
                len(orphans),
            )

    def _sample(self, image: Object, key: str, annotations: Sequence[Object]) -> Sample | None:
        name = image.get("file_name") or image.get("path") or ""
        if not isinstance(name, str) or not name:
            self._report.error("coco_file_name", "{n} images have no file_name", f"image id {key}")
            return None
        try:
            found = self._pictures.find(name, self._near(), self._file.split)
        except DatasetError as error:
            self._report.error("coco_ambiguous", "{n} file names match several images", str(error))
            return None
        if found is None:
            self._report.error(
                "image_missing",
                "{n} images of the annotation file do not exist; upload them or remove their entries",
                name,
            )
            return None
        path, relative = found
        sample = Sample(path, relative, self._file.split, owned=self._pictures.tree.is_owned, key=key)
        if self._task is Task.CLASSIFY:
            return self._classified(sample, annotations)
        rows = self._rows(self._picture(image, path, relative), annotations)
        return sample._replace(text="".join(rows).encode())

    def _classified(self, sample: Sample, annotations: Sequence[Object]) -> Sample | None:
        classes = {self._class(annotation, sample.name) for annotation in annotations} - {None}
        if len(classes) != 1:
            self._report.error(
                "coco_classes",
                "{n} images do not have exactly one class; classify needs one per image",
                sample.name,
            )
            return None
        return sample._replace(class_id=classes.pop())

    def _near(self) -> str:
        root, folder = self._pictures.tree.root, self._file.path.parent
        return f"{folder.relative_to(root)}/" if folder != root and folder.is_relative_to(root) else "images/"

    def _picture(self, image: Object, path: str, name: str) -> Picture:
        width, height = image.get("width"), image.get("height")
        if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
            return Picture(name, width, height)
        known = facts(path)
        return Picture(name, max(known.width, 1), max(known.height, 1))

    def _rows(self, picture: Picture, annotations: Sequence[Object]) -> Iterator[str]:
        for annotation in annotations:
            if annotation.get("iscrowd"):
                self._report.note("coco_crowd", "{n} crowd annotations were skipped", picture.name)
                continue
            cls = self._class(annotation, picture.name)
            if cls is None:
                continue
            row = row_of(annotation, picture, self._task, self._kpt_shape, self._report)
            if row is not None:
                yield " ".join([str(cls), *(f"{number:.9g}" for number in row)]) + "\n"

    def _class(self, annotation: Object, name: str) -> int | None:
        key = str(_category_id(annotation))
        if key in self._ignored or annotation.get("class_name") == BACKGROUND:
            return None
        cls = self._class_of.get(key, self._class_named.get(str(annotation.get("class_name"))))
        if cls is None:
            self._report.error(
                "coco_category",
                "{n} annotations have a category that the file does not list",
                f"{name}: {key}",
            )
        return cls


def _split_name(value: Any) -> str:
    """Return the split for a word in `split_config`; train for an unknown word."""
    text = str(value).lower()
    return next((split for split in SPLITS if text in SPLIT_WORDS[split]), "train")
