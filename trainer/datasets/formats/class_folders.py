"""Read classification datasets: one folder per class, in the folders of the splits or without splits."""

from __future__ import annotations

from pathlib import Path

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.core.text import printable
from trainer.datasets.data_yaml import MAX_CLASSES, MAX_NAME_LENGTH
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.samples import SPLIT_WORDS, SPLITS, RecognizedDataset, Sample

MIN_CLASSES = 2


def split_homes(tree: Tree, home: Path) -> dict[str | None, Path]:
    """Return the folders that contain class folders, by split. Return an empty dict if there are no class folders."""
    names = {name.lower(): name for name in tree.listing(str(home)).folders}
    homes: dict[str | None, Path] = {}
    for split in SPLITS:
        for alias in SPLIT_WORDS[split]:
            fewest = MIN_CLASSES if split == "train" else 1
            if alias in names and _has_classes(tree, home / names[alias], fewest):
                homes[split] = home / names[alias]
    if "train" in homes:
        return homes
    return {None: home} if _has_classes(tree, home, MIN_CLASSES) else {}


def read_classes(tree: Tree, home: Path) -> RecognizedDataset:
    """Return the dataset in class folders. Raises `DatasetError` when there are no class folders."""
    homes = split_homes(tree, home)
    if not homes:
        raise DatasetError(
            f"{printable(home.name)} has no class folders; the task classify needs train/CLASS/NAME.jpg and "
            "val/CLASS/NAME.jpg."
        )
    names = sorted({name for place in homes.values() for name in _classes(tree, place)})
    if len(names) > MAX_CLASSES:
        raise DatasetError(f"{printable(home.name)} has {len(names)} class folders; the limit is {MAX_CLASSES}.")
    number = {name: index for index, name in enumerate(names)}
    samples = [
        Sample(path, f"{tree.relative(folder)}/{file}", split, class_id=number[name], owned=tree.is_owned)
        for split, place in homes.items()
        for name in _classes(tree, place)
        for folder, listing in tree.below(f"{place}/{name}")
        for file, path in listing.images.items()
    ]
    return RecognizedDataset(
        samples=samples, names=tuple(" ".join(n.split())[:MAX_NAME_LENGTH] for n in names), task=Task.CLASSIFY
    )


def looks_like_classes(tree: Tree, home: Path) -> bool:
    """Return whether there are class folders with images and without label files."""
    homes = split_homes(tree, home)
    return bool(homes) and not any(listing.texts for place in homes.values() for _, listing in tree.below(str(place)))


def _classes(tree: Tree, place: Path) -> list[str]:
    return [name for name in tree.listing(str(place)).folders if tree.has_images(f"{place}/{name}")]


def _has_classes(tree: Tree, place: Path, fewest: int) -> bool:
    listing = tree.listing(str(place))
    if listing.images or {"images", "labels"} & set(listing.folders):
        return False
    return len(_classes(tree, place)) >= fewest
