"""Read the NDJSON export of Ultralytics: one line for the dataset, then one line per image with URL and labels."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.core.text import shown
from trainer.datasets.image_kinds import IMAGE_SUFFIXES
from trainer.datasets.untrusted import Limits, safe_name

SUFFIXES = frozenset({"ndjson", "jsonl"})
MAX_LINE_BYTES = 16 << 20  # bytes
MAX_RECORDS = 5_000_000
MAX_NUMBER = 10**9  # larger class ids and coordinates are rejected
SPLITS = ("train", "val", "test")
_ROWS = {  # keys of the labels, by task; if none of them has labels, the first other key is used
    Task.DETECT: ("boxes", "bboxes"),
    Task.SEGMENT: ("segments", "polygons"),
    Task.POSE: ("pose", "keypoints"),
    Task.OBB: ("obb",),
    Task.CLASSIFY: ("classification",),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """An image of the export. `image` and `label` are paths in the tree; `label` is None for classification."""

    image: str
    url: str | None
    file: str  # the file name in the export
    split: str
    label: str | None
    rows: str


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export. `yaml` is None for classification. `folder` is the folder of the images without a URL, or None."""

    yaml: dict[str, Any] | None
    records: list[Record]
    folder: str | None


def read_ndjson(path: Path, name: str) -> Export:
    """Read an export. Raises `DatasetError` with the number of the invalid line."""
    lines = _lines(path, name)
    number, head = next(lines, (1, {}))
    where = f"NDJSON {shown(name)}"
    if "file" in head or not head:
        raise DatasetError(f"{where}: line {number} must describe the dataset (type, task, class_names).")
    task = _task(head, where)
    names = _class_names(head, where)
    reader = _Records(where, task, names)
    records = [reader.record(number, record) for number, record in lines]
    if not records:
        raise DatasetError(f"{where} lists no images.")
    folder = head.get("path")
    return Export(
        yaml=None if task is Task.CLASSIFY else _yaml(head, task, names, {record.split for record in records}),
        records=records,
        folder=folder if isinstance(folder, str) else None,
    )


class _Records:
    def __init__(self, where: str, task: Task, names: dict[int, str]) -> None:
        self._where = where
        self._task = task
        self._names = names
        self._folders = _class_folders(names)
        self._taken: set[str] = set()

    def record(self, number: int, record: dict[str, Any]) -> Record:
        where = f"{self._where}, line {number}"
        split, file, url = record.get("split"), record.get("file"), record.get("url")
        if split not in SPLITS:
            raise DatasetError(f"{where}: split is {shown(str(split))}; it must be train, val or test.")
        if not isinstance(file, str) or not isinstance(url, str | None):
            raise DatasetError(f"{where}: file and url must be text.")
        rows = self._rows(record.get("annotations"), where)
        is_classified = self._task is Task.CLASSIFY
        folder = f"{split}/{self._folder(rows, where)}" if is_classified else f"images/{split}"
        stem, suffix = self._place(folder, file, where)
        return Record(
            image=f"{folder}/{stem}.{suffix}",
            url=url or None,
            file=file,
            split=split,
            label=None if is_classified else f"labels/{split}/{stem}.txt",
            rows="" if is_classified else "".join(" ".join(map(str, row)) + "\n" for row in rows),
        )

    def _rows(self, annotations: Any, where: str) -> list[list[int | float]]:
        if annotations is None:
            return []
        if not isinstance(annotations, dict):
            raise DatasetError(f"{where}: annotations must be an object.")
        keys = [key for key in (*_ROWS[self._task], *annotations) if annotations.get(key)]
        rows = annotations[keys[0]] if keys else []
        if self._task is Task.CLASSIFY and isinstance(rows, list):
            rows = [rows]
        if not isinstance(rows, list) or not all(isinstance(row, list) and all(map(_is_number, row)) for row in rows):
            raise DatasetError(f"{where}: annotations must be lists of numbers that start with the class id.")
        return [row for row in rows if row]

    def _folder(self, rows: list[list[int | float]], where: str) -> str:
        if len(rows) != 1 or not isinstance(rows[0][0], int):
            raise DatasetError(f"{where}: the image must have exactly one class id. Correct its labels, or remove it.")
        return self._folders.get(rows[0][0], f"class{rows[0][0]}")

    def _place(self, folder: str, file: str, where: str) -> tuple[str, str]:
        """Return a unique stem and the suffix. The stem is unique, because images must not share a label file."""
        path = PurePosixPath(safe_name(file.replace("\\", "/").rpartition("/")[2], Limits(), where) or "image")
        suffix = path.suffix[1:].lower()
        stem = path.stem.lstrip(".") or "image"
        if suffix not in IMAGE_SUFFIXES:
            stem, suffix = path.name.lstrip(".") or "image", "jpg"
        free, again = stem, 1
        while f"{folder}/{free}".casefold() in self._taken:
            free, again = f"{stem}_{len(self._taken) + again}", again + 1
        self._taken.add(f"{folder}/{free}".casefold())
        return free, suffix


def _lines(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES or number > MAX_RECORDS:
                raise DatasetError(
                    f"NDJSON {shown(name)}, line {number}: a line can have at most {MAX_LINE_BYTES >> 20} MiB, and "
                    f"an export at most {MAX_RECORDS:,} lines. Split the dataset."
                )
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise DatasetError(
                    f"NDJSON {shown(name)}, line {number} is not a JSON object. Export the dataset again."
                )
            yield number, value


def _task(head: dict[str, Any], where: str) -> Task:
    text = head.get("task", "detect")
    if not isinstance(text, str) or text not in set(Task):
        raise DatasetError(f"{where}: the task {shown(str(text))} is unknown; use one of {', '.join(Task)}.")
    return Task(text)


def _class_names(head: dict[str, Any], where: str) -> dict[int, str]:
    given = head.get("class_names") or {}
    pairs = list(
        enumerate(given) if isinstance(given, list) else given.items() if isinstance(given, dict) else [("", "")]
    )
    names = {int(key): value for key, value in pairs if str(key).isdecimal() and len(str(key)) < 7}
    if len(names) != len(pairs) or not all(isinstance(value, str) for value in names.values()):
        raise DatasetError(f"{where}: class_names must be a list of names, or map class numbers to names.")
    return names


def _class_folders(names: dict[int, str]) -> dict[int, str]:
    """Return a folder name per class: the class name if it is safe and unique, otherwise classN."""
    folders: dict[int, str] = {}
    taken: set[str] = set()
    for number, name in names.items():
        is_plain = re.fullmatch(r"\w([\w -]*[\w-])?", name) and unicodedata.is_normalized("NFC", name)
        is_safe = is_plain and len(name.encode()) < 200
        folders[number] = name if is_safe and name not in taken else f"class{number}"
        taken.add(folders[number])
    return folders


def _yaml(head: dict[str, Any], task: Task, names: dict[int, str], splits: set[str]) -> dict[str, Any]:
    yaml: dict[str, Any] = {split: f"images/{split}" for split in SPLITS if split in splits}
    yaml["task"] = task.value
    if names:
        yaml["names"] = {n: names.get(n, f"class{n}") for n in range(max(names) + 1)} if max(names) < 20_000 else names
    for key in ("kpt_shape", "flip_idx"):
        value = head.get(key)
        if isinstance(value, list) and all(isinstance(item, int) for item in value):
            yaml[key] = value
    return yaml


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
