"""Read an untrusted data.yaml. Every value is read as text. YAML tags are ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.core.json_text import storable
from trainer.core.text import printable
from trainer.datasets.findings import Report
from trainer.datasets.untrusted import read_file

MAX_YAML_BYTES = 4 << 20  # bytes; 1,000 names take 30 KB
MAX_CLASSES = 20_000
MAX_NAME_LENGTH = 200  # characters
MAX_KEYPOINTS = 1000


@dataclass(frozen=True, kw_only=True)
class DataYaml:
    """The known keys of a data.yaml. `ids[i]` is the number of class `names[i]`.

    `splits` maps each split to its entries: paths or URLs.
    """

    splits: Mapping[str, tuple[str, ...]]
    path: str | None
    names: tuple[str, ...] | None
    ids: tuple[int, ...] | None
    nc: int | None
    task: Task | None
    kpt_shape: tuple[int, int] | None
    flip_idx: tuple[int, ...] | None


def load_yaml(path: Path, report: Report, name: str | None = None) -> dict[str, Any]:
    """Return the mapping in a YAML file. Every scalar is text, so `no` stays the word "no".

    `name` is the name of the file in messages, if it has another name in our cache.
    Raises `DatasetError` if the file is unreadable, invalid, too large, nested too deeply or not a mapping.
    """
    name = name or path.name
    text = _decoded(read_file(path, MAX_YAML_BYTES, name), name, report)
    # imported here, because only confined processes need the library
    from trainer.datasets.yaml_text import parsed

    value = parsed(text, name, report)
    if not isinstance(value, dict):
        raise DatasetError(
            f"{printable(name)} is not a dataset YAML: it must be a mapping with train:, val: and names:."
        )
    return {key: item for key, item in value.items() if isinstance(key, str)}


def read_data_yaml(values: Mapping[str, Any], report: Report) -> DataYaml:
    """Return the known keys of a YAML, checked and converted. Problems go into `report`."""
    names, ids = _names(values.get("names"), report)
    nc = _nc(values.get("nc"), names, report)
    kpt_shape = _integers(values.get("kpt_shape"), "kpt_shape", report)
    if kpt_shape and (len(kpt_shape) != 2 or not 1 <= kpt_shape[0] <= MAX_KEYPOINTS or kpt_shape[1] not in (2, 3)):
        report.add("kpt_shape", problem=f"kpt_shape is {list(kpt_shape)}; it must be [number of keypoints, 2 or 3].")
        kpt_shape = None
    flip_idx = _integers(values.get("flip_idx"), "flip_idx", report)
    if flip_idx and (kpt_shape is None or sorted(flip_idx) != list(range(kpt_shape[0]))):
        report.add("flip_idx", problem="flip_idx must name each keypoint of kpt_shape once, counted from 0.")
        flip_idx = None
    return DataYaml(
        splits=_splits(values, report),
        path=_text(values.get("path")),
        names=names,
        ids=ids,
        nc=nc,
        task=_task(values.get("task"), report),
        kpt_shape=(kpt_shape[0], kpt_shape[1]) if kpt_shape else None,
        flip_idx=flip_idx or None,
    )


def _decoded(data: bytes, name: str, report: Report) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data[:4]:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        report.add("yaml_encoding", file=printable(name))
        return data.decode("cp1252", errors="replace")


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _splits(values: Mapping[str, Any], report: Report) -> dict[str, tuple[str, ...]]:
    splits = {}
    for split, keys in {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}.items():
        value = next((values[key] for key in keys if values.get(key)), None)
        entries = value if isinstance(value, list) else [value]
        texts = tuple(text for entry in entries if (text := _text(entry)))
        if value is not None and len(texts) != len(entries):
            report.add(f"yaml_{split}")
        if texts:
            splits[split] = texts
    return splits


def _names(value: Any, report: Report) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    if value is None or value in ("", [], {}):
        return None, None
    if isinstance(value, str):
        value = [part for part in re.split(r"[,\n]", value.strip("[]")) if part.strip()]
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    if len(pairs) > MAX_CLASSES:
        report.add("yaml_names", problem=f"names: has {len(pairs)} classes; the limit is {MAX_CLASSES}.")
        return None, None
    ids, names = [], []
    for key, name in pairs:
        number = _integer(key)
        if number is None or number < 0 or not isinstance(name, str) or len(name) > MAX_NAME_LENGTH:
            report.add(
                "yaml_names",
                str(name) if number is not None else str(key),
                problem="names: must be a list of class names, or a mapping from class number to class name. "
                f"A class name has at most {MAX_NAME_LENGTH} characters.",
            )
            continue
        ids.append(number)
        names.append(storable(" ".join(name.split())) or f"class{number}")
    if len(set(ids)) != len(ids):
        report.add("yaml_names", problem="names: has two names for one class number.")
        return None, None
    ordered = sorted(zip(ids, names, strict=True))
    return tuple(name for _, name in ordered), tuple(number for number, _ in ordered)


def _nc(value: Any, names: tuple[str, ...] | None, report: Report) -> int | None:
    count = _integer(value)
    if value not in (None, "") and (count is None or not 1 <= count <= MAX_CLASSES):
        report.add("yaml_nc", problem=f"nc: {printable(str(value))} is not a number of classes and was ignored.")
        return None
    if count is not None and names is not None and count != len(names):
        report.add("yaml_nc", problem=f"nc: is {count}, but names: has {len(names)} classes; nc: was ignored.")
    return count


def _integers(value: Any, key: str, report: Report) -> tuple[int, ...] | None:
    if value in (None, "", []):
        return None
    numbers = [_integer(item) for item in value] if isinstance(value, list) else [None]
    if any(number is None for number in numbers):
        report.add(key, problem=f"{key}: must be a list of whole numbers.")
        return None
    return tuple(number for number in numbers if number is not None)


def _integer(value: Any) -> int | None:
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", value, re.ASCII) else None


def _task(value: Any, report: Report) -> Task | None:
    if value in (None, ""):
        return None
    if isinstance(value, str) and value.lower() in set(Task):
        return Task(value.lower())
    report.add("yaml_task", value=printable(str(value)), tasks=", ".join(Task))
    return None
