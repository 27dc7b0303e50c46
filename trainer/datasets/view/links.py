# ruff: noqa: PTH123, PTH211  (plain strings are faster: there are 100,000 paths)
"""Create the view, a private dataset folder for one run. It contains links to images, new labels and a new data.yaml.

    view/data.yaml   images/{train,val,test}/…   labels/{train,val,test}/….txt      classification: {train,val,test}/CLASS/…
    view/linked/0   linked/1 …   links to the folders of the images and of cached labels

Images and cached labels are symlinks, never hard links: a training process could write to the cached file through a hard
link. Ultralytics rewrites JPEGs with data after their end mark, so these images are copied. A cached folder of unchanged
labels is one symlink. A folder of images is never a symlink, because Ultralytics looks for labels beside the real path of
the images.

A symlink goes through `linked`, because file systems create and remove links of up to 60 bytes faster than longer links.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from trainer.core.errors import DatasetError, disk_errors
from trainer.core.stop import StopSignal
from trainer.core.text import printable
from trainer.datasets.samples import SPLITS, Sample

MAX_STEM_LENGTH = 150  # characters; leaves room for suffixes and for file systems that count bytes
_UNSAFE = re.compile(r"[^\w.+() -]")
_PLAIN_SUFFIX = {"jfif": "jpg", "jpe": "jpg"}
VIEW = "view"  # in the folder of a run's dataset
LINKED = "linked"  # in a view
DATA_YAML = "data.yaml"  # in a view
CHECK_EVERY = 512  # number of files between two checks of the stop signal


def new_folder(folder: Path) -> None:
    """Create the folder of a run's dataset. Raises `MachineFailed` if the folder exists or cannot be created."""
    with view_errors():
        folder.mkdir(parents=True)


def placed(samples: Sequence[Sample], class_folders: Sequence[str] = ()) -> list[Sample]:
    """Return the samples with their place in a view: images/SPLIT/NAME, or SPLIT/CLASS/NAME for classification."""
    by_folder: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        split = sample.split or "train"
        folder = f"images/{split}" if sample.class_id is None else f"{split}/{class_folders[sample.class_id]}"
        by_folder.setdefault(folder, []).append(index)
    result = list(samples)
    for folder, members in by_folder.items():
        for index, name in zip(members, view_names([samples[index].name for index in members]), strict=True):
            result[index] = samples[index]._replace(place=f"{folder}/{name}")
    return result


def write_view(view: Path, samples: Sequence[Sample], stop: StopSignal, empty: Iterable[str] = ()) -> None:
    """Create the images and labels of a view, and the folders in `empty`, which can stay empty.

    Raises `MachineFailed` for errors of the disk, `DatasetError` if an image no longer exists, or `Stopped`.
    """
    with view_errors():
        view.mkdir(parents=True, exist_ok=True)
        for folder in empty:
            (view / folder).mkdir(parents=True, exist_ok=True)
        linked = _link_folders(view, samples)
        by_folder: dict[str, list[Sample]] = {}
        for sample in samples:
            by_folder.setdefault(sample.place.rpartition("/")[0], []).append(sample)
        for folder, members in by_folder.items():
            top, _, split = folder.partition("/")
            if top != "images":  # a folder of one class
                _link_images(members, view, folder, linked, stop)
                continue
            # creating files is slow, and file systems can work on two folders at the same time
            with ThreadPoolExecutor(1) as beside:
                writing = beside.submit(_write_labels, members, view / "labels" / split, linked, stop)
                _link_images(members, view, folder, linked, stop)
                writing.result()


def write_data_yaml(
    view: Path,
    names: Sequence[str],
    splits: Iterable[str],
    kpt_shape: Sequence[int] | None,
    flip_idx: Sequence[int] | None,
) -> Path:
    """Write data.yaml, the only YAML that the training process reads, and return its path."""
    import yaml  # imported here, because only confined processes need the library

    present = set(splits)
    data: dict[str, object] = {"path": str(view.absolute())}
    data |= {split: f"images/{split}" for split in SPLITS if split in present}
    data |= {"nc": len(names), "names": dict(enumerate(names))}
    if kpt_shape:
        data["kpt_shape"] = list(kpt_shape)
    if flip_idx:
        data["flip_idx"] = list(flip_idx)
    path = view / DATA_YAML
    with view_errors():
        path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def view_names(names: Sequence[str]) -> list[str]:
    """Return safe and unique file names for one folder of a view. The input names can contain folders.

    Names are kept if possible, so that the images of a flat dataset keep their order.
    """
    taken: dict[str, int] = {}  # stem in lower case → number of the last name that was made from it
    result = []
    for name in names:
        folder, _, last = name.rpartition("/")
        stem, _, suffix = last.rpartition(".")
        suffix = _PLAIN_SUFFIX.get(suffix.lower(), suffix)
        stem = _safe(stem)
        if stem.casefold() in taken:
            stem = _safe(f"{folder.replace('/', '_')}_{stem}" if folder else stem)
        unique, number = stem, taken.get(stem.casefold(), 1)
        while unique.casefold() in taken:
            number += 1
            unique = f"{stem}_{number}"
        taken[stem.casefold()] = number
        taken[unique.casefold()] = 1
        result.append(f"{unique}.{suffix}")
    return result


def folder_names(names: Sequence[str]) -> list[str]:
    """Return a safe folder name per class. The sorted names have the order of the classes."""
    folders = [stem for stem, _, _ in (name.rpartition(".") for name in view_names([f"{name}.d" for name in names]))]
    if folders == sorted(folders):
        return folders
    width = len(str(len(folders)))
    return [f"{number:0{width}}_{folder}" for number, folder in enumerate(folders)]


def _safe(stem: str) -> str:
    """Return a stem without control characters, separators, broken Unicode, leading dots and leading hyphens."""
    stem = _UNSAFE.sub("_", stem)
    if len(stem) > MAX_STEM_LENGTH or len(stem.encode("utf-8", "replace")) > MAX_STEM_LENGTH:
        stem = stem.encode("utf-8", "replace")[: MAX_STEM_LENGTH - 8].decode("utf-8", "ignore")
    return f"_{stem.lstrip('.-')}" if stem[:1] in (".", "-", "") else stem


def view_errors() -> AbstractContextManager[None]:
    """Turn errors of the disk into `MachineFailed`."""
    return disk_errors(
        lambda error: f"The dataset view cannot be written: {error.strerror} ({printable(str(error.filename))})."
    )


def _link_folders(view: Path, samples: Sequence[Sample]) -> dict[str, str]:
    """Link the folders of the images and of cached labels. Return the path of each link in the view, by folder."""
    paths = (path for sample in samples for path in (sample.image, sample.label if sample.owned else None) if path)
    folders = dict.fromkeys(path.rpartition("/")[0] for path in paths)
    (view / LINKED).mkdir()
    linked = {folder: f"{LINKED}/{number}" for number, folder in enumerate(folders)}
    for folder, link in linked.items():
        os.symlink(folder, view / link)
    return linked


def _link_images(
    samples: Sequence[Sample], view: Path, folder: str, linked: Mapping[str, str], stop: StopSignal
) -> None:
    (view / folder).mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples):
        if number % CHECK_EVERY == 0:
            stop.raise_if_set()
        target = f"{view}/{sample.place}"
        try:
            if sample.facts.has_trailing_data:
                shutil.copyfile(sample.image, target)
            else:
                _symlink(sample.image, target, linked)
        except FileNotFoundError:
            raise DatasetError(
                f"The image {printable(sample.name)} was removed during the preparation. Leave the dataset unchanged "
                "and requeue the run."
            ) from None


def _label_name(sample: Sample) -> str:
    return f"{sample.place.rpartition('/')[2].rpartition('.')[0]}.txt"


def _whole_labels(samples: Sequence[Sample]) -> str | None:
    """Return the cached folder that contains exactly the label files of the samples, or None.

    Each label file must already have the name that it needs in the view. Such a folder is linked as a whole.
    """
    if not samples[0].owned:
        return None
    folder = (samples[0].label or "").rpartition("/")[0]
    is_whole = all(sample.label == f"{folder}/{_label_name(sample)}" for sample in samples)
    return folder if folder and is_whole else None


def _write_labels(samples: Sequence[Sample], folder: Path, linked: Mapping[str, str], stop: StopSignal) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if whole := _whole_labels(samples):
        folder.symlink_to(f"../{linked[whole]}")
        return
    folder.mkdir()
    for number, sample in enumerate(samples):
        if number % CHECK_EVERY == 0:
            stop.raise_if_set()
        target = f"{folder}/{_label_name(sample)}"
        if sample.owned and sample.label:
            _symlink(sample.label, target, linked)
            continue
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with open(descriptor, "wb", buffering=0) as file:
            file.write(sample.text or b"")


def _symlink(source: str, target: str, linked: Mapping[str, str]) -> None:
    """Link a file into a folder of the view. Each folder of files is two levels below the view."""
    folder, _, name = source.rpartition("/")
    os.symlink(f"../../{linked[folder]}/{name}", target)
