"""Read COCO and DICE datasets: JSON files with images, categories and annotations, converted to YOLO rows.

A class number is the position in the list of categories, not the category id; `__background__` is skipped. DICE files
can have annotations inside images, `classes` instead of `categories`, and `split_config`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.datasets.findings import Report
from trainer.datasets.formats.coco_document import (
    BACKGROUND,
    Object,
    all_categories,
    all_names,
    categories,
    category_id,
    class_name,
    guess_task,
    keypoints,
    load,
    nested_annotations,
    objects,
    split_request,
)
from trainer.datasets.formats.coco_geometry import Picture, row_of
from trainer.datasets.formats.coco_images import ImageIndex
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.images.header import facts
from trainer.datasets.samples import RecognizedDataset, Sample

MAX_SIDE = 1_000_000  # pixels; a larger size in the annotation file is ignored


@dataclass(frozen=True)
class AnnotationFile:
    """A JSON file, and the split that its path names, or None."""

    path: Path
    split: str | None


def read_coco(tree: Tree, files: Sequence[AnnotationFile], task: Task | None, report: Report) -> RecognizedDataset:
    """Return the dataset in annotation files. If `task` is None, the task is guessed from the annotations.

    Problems of single images and annotations go into `report`. Raises `DatasetError` when a file cannot be read.
    """
    documents = [load(file.path) for file in files]
    names = all_names(documents)
    task = task or guess_task(documents)
    pictures = ImageIndex(tree)
    kpt_shape, flip_idx = keypoints(documents, report) if task is Task.POSE else (None, None)
    samples: list[Sample] = []
    for file, document in zip(files, documents, strict=True):
        samples += _Converter(file, document, names, task, kpt_shape, pictures, report).samples()
    return RecognizedDataset(
        samples=samples,
        names=tuple(names),
        task=task,
        kpt_shape=kpt_shape,
        flip_idx=flip_idx,
        split=split_request(documents[0]) if len(documents) == 1 else None,
    )


@dataclass(eq=False)
class _Converter:
    file: AnnotationFile
    document: Object
    names: Sequence[str]
    task: Task
    kpt_shape: tuple[int, int] | None
    pictures: ImageIndex
    report: Report

    def __post_init__(self) -> None:
        self._class_named = {name: index for index, name in enumerate(self.names)}
        self._class_of = {str(c.get("id")): self._class_named[class_name(c)] for c in categories(self.document)}
        self._ignored = {str(c.get("id")) for c in all_categories(self.document) if c.get("name") == BACKGROUND}

    def samples(self) -> Iterator[Sample]:
        by_image: dict[str, list[Object]] = defaultdict(list)
        for annotation in objects(self.document.get("annotations")):
            by_image[str(annotation.get("image_id"))].append(annotation)
        seen: set[str] = set()
        for number, image in enumerate(objects(self.document["images"])):
            if number % 256 == 0:
                self.pictures.tree.stop.raise_if_set()
            key = str(image.get("id"))
            sample = self._sample(image, key, by_image.pop(key, []) + nested_annotations(image))
            if sample and sample.name in seen:
                self.report.add("coco_duplicate_image", sample.name)
            elif sample:
                seen.add(sample.name)
                yield sample
        for key, orphans in by_image.items():
            self.report.add("coco_orphan", f"image_id {key}", len(orphans))

    def _sample(self, image: Object, key: str, annotations: Sequence[Object]) -> Sample | None:
        name = image.get("file_name") or image.get("path") or ""
        if not isinstance(name, str) or not name:
            self.report.add("coco_file_name", f"image id {key}")
            return None
        try:
            found = self.pictures.find(name, self._near(), self.file.split)
        except DatasetError as error:
            self.report.add("coco_ambiguous", str(error))
            return None
        if found is None:
            self.report.add("image_missing", name)
            return None
        path, relative = found
        sample = Sample(path, relative, self.file.split, owned=self.pictures.tree.is_owned, key=key)
        if self.task is Task.CLASSIFY:
            return self._classified(sample, annotations)
        rows = self._rows(self._picture(image, path, relative), annotations)
        return sample._replace(text="".join(rows).encode())

    def _classified(self, sample: Sample, annotations: Sequence[Object]) -> Sample | None:
        classes = {self._class(annotation, sample.name) for annotation in annotations} - {None}
        if len(classes) != 1:
            self.report.add("coco_classes", sample.name)
            return None
        return sample._replace(class_id=classes.pop())

    def _near(self) -> str:
        root, folder = self.pictures.tree.root, self.file.path.parent
        return f"{folder.relative_to(root)}/" if folder != root and folder.is_relative_to(root) else "images/"

    def _picture(self, image: Object, path: str, name: str) -> Picture:
        sides = (image.get("width"), image.get("height"))
        size = [side for side in sides if isinstance(side, int) and 0 < side < MAX_SIDE]
        if len(size) == len(sides):
            return Picture(name, *size)
        known = facts(path)
        return Picture(name, max(known.width, 1), max(known.height, 1))

    def _rows(self, picture: Picture, annotations: Sequence[Object]) -> Iterator[str]:
        for annotation in annotations:
            if annotation.get("iscrowd"):
                self.report.add("coco_crowd", picture.name)
                continue
            cls = self._class(annotation, picture.name)
            if cls is None:
                continue
            row = row_of(annotation, picture, self.task, self.kpt_shape, self.report)
            if row is not None:
                yield " ".join([str(cls), *(f"{number:.9g}" for number in row)]) + "\n"

    def _class(self, annotation: Object, name: str) -> int | None:
        key = str(category_id(annotation))
        if key in self._ignored or annotation.get("class_name") == BACKGROUND:
            return None
        cls = self._class_of.get(key, self._class_named.get(str(annotation.get("class_name"))))
        if cls is None:
            self.report.add("coco_category", f"{name}: {key}")
        return cls
