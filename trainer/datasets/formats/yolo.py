# ruff: noqa: PTH112, PTH118  (plain strings are faster: there are 100,000 paths)
"""Read YOLO datasets in all common layouts, with or without a data.yaml."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.core.errors import DatasetError
from trainer.core.text import printable
from trainer.datasets.data_yaml import MAX_CLASSES, MAX_NAME_LENGTH, DataYaml, load_yaml, read_data_yaml
from trainer.datasets.findings import Level, Report
from trainer.datasets.formats.source_tree import Tree, label_files
from trainer.datasets.samples import SPLIT_WORDS, SPLITS, RecognizedDataset, Sample
from trainer.datasets.untrusted import read_file

CLASS_FILES = ("classes", "labels", "names", "obj", "predefined_classes", "_darknet")
MAX_LIST_BYTES = 256 << 20  # maximum number of bytes of a list of images
NOT_LABELS = frozenset({*CLASS_FILES, "train", "val", "valid", "test", "readme", "license"})


def read_yolo(tree: Tree, yaml: Path | None, report: Report, home: Path | None = None) -> RecognizedDataset:
    """Return the dataset that `yaml` describes or, without a YAML, the dataset in the folder `home`.

    Problems go into `report`. Raises `DatasetError` when the YAML cannot be read.
    """
    values = load_yaml(yaml, report) if yaml else {}
    data = read_data_yaml(values, report)
    reader = _Reader(tree, yaml.parent if yaml else home or tree.root, data, report)
    samples = reader.samples()
    reader.report_orphans()
    names, ids = (data.names, data.ids) if data.names else (reader.class_file(), None)
    return RecognizedDataset(
        samples=samples,
        names=names,
        ids=ids,
        count=data.nc or 0,
        task=data.task,
        kpt_shape=data.kpt_shape,
        flip_idx=data.flip_idx,
    )


class _Reader:
    def __init__(self, tree: Tree, home: Path, data: DataYaml, report: Report) -> None:
        self._tree = tree
        self._home = str(home)
        self._data = data
        self._report = report
        self._bases = list(self._base_folders())
        self._used: dict[str, set[str]] = {}  # label folder → stems that belong to an image
        self._seen: set[tuple[str | None, str]] = set()
        self._seen_twice = 0

    def samples(self) -> list[Sample]:
        samples = list(self._from_yaml() if self._data.splits.get("train") else self._from_folders())
        if self._seen_twice:
            self._report.add("image_listed_twice", count=self._seen_twice)
        return samples

    def _base_folders(self) -> Iterator[str]:
        path = (self._data.path or "").replace("\\", "/").rstrip("/")
        if path:
            yield from self._existing(os.path.join(self._home, path))
            for tail in _tails(path):
                yield from self._existing(f"{self._home}/{tail}")
        yield self._home

    def _existing(self, path: str) -> Iterator[str]:
        if os.path.isdir(path):
            try:
                yield self._tree.admitted(path) or path
            except DatasetError:
                if not self._tree.is_owned:
                    raise  # the user named this folder: another folder would be wrong
                self._report.add("yaml_path", self._data.path or "")

    def _located(self, entry: str) -> str | None:
        """Return the folder or file that an entry of the YAML names, or None."""
        entry = entry.replace("\\", "/").rstrip("/") or "/"
        for base in self._bases:
            path = os.path.join(base, entry)
            if os.path.lexists(path) and not (self._tree.is_owned and self._is_foreign(path)):
                return self._tree.admitted(path)
        # a path of another host, or Roboflow's ../train/images: search the dataset for the last parts of the path
        for tail in _tails(entry):
            for base in self._bases:
                if os.path.lexists(f"{base}/{tail}"):
                    if not entry.startswith("../"):
                        self._report.add("yaml_foreign_path", entry)
                    return self._tree.admitted(f"{base}/{tail}")
        return None

    def _is_foreign(self, path: str) -> bool:
        try:
            self._tree.admitted(path)
        except DatasetError:
            return True
        return False

    def _from_yaml(self) -> Iterator[Sample]:
        for split in SPLITS:
            entries = self._data.splits.get(split, ())
            found = 0
            for entry in entries:
                for sample in self._entry(split, entry):
                    found += 1
                    yield sample
            if not entries and split != "train":
                for folder in self._split_folders(split):
                    self._report.add(f"yaml_no_{split}", self._tree.relative(folder))
                    yield from self._folder(split, folder)
            elif entries and not found:
                level: Level = "error" if split == "train" else "warning"
                problem = f"{split}: names no images; correct the path or upload the images"
                self._report.add(f"{split}_empty", ", ".join(entries), level=level, problem=problem)

    def _entry(self, split: str, entry: str) -> Iterator[Sample]:
        path = self._located(entry)
        if path is None:
            return
        if os.path.isdir(path):
            yield from self._folder(split, path)
        elif path.lower().endswith(".txt"):
            yield from self._list(split, path)
        else:
            self._report.add(f"yaml_{split}", entry)

    def _folder(self, split: str | None, folder: str) -> Iterator[Sample]:
        for place, listing in self._tree.below(folder):
            yield from self._images(split, place, listing.images)

    def _images(self, split: str | None, place: str, images: dict[str, str]) -> Iterator[Sample]:
        if not images:
            return
        labels = label_files(self._tree, place, list(images))
        prefix = self._tree.relative(place)
        prefix = "" if place == str(self._tree.root) else f"{prefix.strip('/')}/"
        for name, path in images.items():
            stem = name.rpartition(".")[0]
            label = labels.get(stem)
            if (split, f"{prefix}{name}") in self._seen:
                self._seen_twice += 1
                continue
            self._seen.add((split, f"{prefix}{name}"))
            if label:
                self._used.setdefault(label.rpartition("/")[0], set()).add(stem)
            yield Sample(path, f"{prefix}{name}", split, label, owned=self._tree.is_owned)

    def _list(self, split: str, path: str) -> Iterator[Sample]:
        by_folder: dict[str, list[str]] = {}
        for line in _lines(path):
            folder, _, name = line.replace("\\", "/").rpartition("/")
            by_folder.setdefault(folder, []).append(name)
        for folder, names in by_folder.items():
            self._tree.stop.raise_if_set()
            place = self._list_folder(folder, Path(path).parent, names)
            listing = self._tree.listing(place).images if place else {}
            for name in names:
                if name not in listing:
                    self._report.add(
                        "listed_image_missing", f"{folder}/{name}" if folder else name, file=printable(Path(path).name)
                    )
            if place:
                self._seen_twice += len(names) - len(set(names))
                yield from self._images(split, place, {n: listing[n] for n in dict.fromkeys(names) if n in listing})

    def _list_folder(self, folder: str, beside: Path, names: Sequence[str]) -> str | None:
        bases = [str(beside), *self._bases]
        for base in bases if len(folder) < 4096 else ():
            place = os.path.normpath(os.path.join(base, folder))
            if os.path.isdir(place) and not self._is_foreign(place):
                real = self._tree.admitted(place)
                if real and any(name in self._tree.listing(real).images for name in names[:20]):
                    return real
        for tail in _tails(folder):
            for base in bases:
                if os.path.isdir(f"{base}/{tail}"):
                    return self._tree.admitted(f"{base}/{tail}")
        return None

    def _from_folders(self) -> Iterator[Sample]:
        splits = {split: self._split_folders(split) for split in SPLITS}
        if splits["train"]:
            for split, places in splits.items():
                for place in places:
                    yield from self._folder(split, place)
            return
        for base in self._bases:
            place = f"{base}/images" if self._tree.has_images(f"{base}/images") else base
            if self._tree.has_images(place):
                yield from self._folder(None, place)
                return

    def _split_folders(self, split: str) -> list[str]:
        for base in self._bases:
            for alias in SPLIT_WORDS[split]:
                for place in (f"{base}/images/{alias}", f"{base}/{alias}/images", f"{base}/{alias}"):
                    if os.path.isdir(place) and self._tree.has_images(place):
                        return [place]
        return []

    def class_file(self) -> tuple[str, ...] | None:
        """Return the class names from classes.txt, obj.names or similar files, which have one name per line."""
        for base in dict.fromkeys([*self._bases, str(self._tree.root)]):
            for folder in (base, f"{base}/labels", f"{base}/train", f"{base}/labels/train", f"{base}/train/labels"):
                listing = self._tree.listing(folder)
                paths = [listing.texts[stem] for stem in CLASS_FILES if stem in listing.texts]
                paths += [f"{folder}/{name}" for name in listing.others if name.endswith((".names", ".labels"))]
                for path in paths:
                    names = tuple(" ".join(line.split())[:MAX_NAME_LENGTH] for line in _lines(path, 1 << 20))
                    if names and len(names) <= MAX_CLASSES and not _is_label(names):
                        return names
        return None

    def report_orphans(self) -> None:
        """Report label files without an image, in folders that also contain label files with an image."""
        for folder, used in self._used.items():
            for stem in self._tree.listing(folder).texts.keys() - used:
                if stem.lower() not in NOT_LABELS:
                    self._report.add("label_without_image", self._tree.relative(f"{folder}/{stem}.txt"))


def _tails(path: str) -> Iterator[str]:
    parts = [part for part in re.sub(r"^[A-Za-z]:", "", path).split("/") if part not in ("", ".", "..")]
    for length in range(min(len(parts), 4), 0, -1):
        yield "/".join(parts[-length:])


def _lines(path: str, largest: int = MAX_LIST_BYTES) -> list[str]:
    data = read_file(path, largest)
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _is_label(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[\d.\s+e-]+", name) and " " in name for name in names)
