"""Classification: a folder per class, below train, val and test or without splits."""

from __future__ import annotations

from pathlib import Path

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.datasets.data_yaml import LONGEST_NAME, MOST_CLASSES
from trainer.datasets.folders import Folders
from trainer.datasets.found import SPLITS, Found, Report, Sample, shown
from trainer.datasets.yolo_format import ALIASES, Tree

FEWEST_CLASSES = 2


def split_homes(folders: Folders, home: Path) -> dict[str | None, Path]:
    """The folders that hold class folders, by split; empty when this is no classification dataset."""
    names = {name.lower(): name for name in folders.listing(str(home)).folders}
    homes: dict[str | None, Path] = {}
    for split in SPLITS:
        for alias in ALIASES[split]:
            fewest = FEWEST_CLASSES if split == "train" else 1
            if alias in names and _has_classes(folders, home / names[alias], fewest):
                homes[split] = home / names[alias]
    if "train" in homes:
        return homes
    return {None: home} if _has_classes(folders, home, FEWEST_CLASSES) else {}


def read_classes(tree: Tree, home: Path, report: Report) -> Found:
    """The images below class folders. Raises `DatasetError` when there are none."""
    folders = Folders(tree.root, tree.admit, report, tree.stop)
    homes = split_homes(folders, home)
    if not homes:
        raise DatasetError(
            f"{shown(home.name)} has no class folders; classify needs train/CLASS/image.jpg and val/CLASS/image.jpg.",
        )
    names = sorted({name for place in homes.values() for name in _classes(folders, place)})
    if len(names) > MOST_CLASSES:
        raise DatasetError(f"{shown(home.name)} has {len(names)} class folders; {MOST_CLASSES} are the limit.")
    number = {name: index for index, name in enumerate(names)}
    samples = [
        Sample(path, f"{folders.relative(folder)}/{file}", split, class_id=number[name], owned=tree.is_owned)
        for split, place in homes.items()
        for name in _classes(folders, place)
        for folder, listing in folders.below(f"{place}/{name}")
        for file, path in listing.images.items()
    ]
    return Found(samples=samples, names=tuple(" ".join(n.split())[:LONGEST_NAME] for n in names), task=Task.CLASSIFY)


def looks_like_classes(tree: Tree, home: Path) -> bool:
    """Class folders with images and not one label file among them."""
    folders = Folders(tree.root, tree.admit, Report(), tree.stop)
    homes = split_homes(folders, home)
    return bool(homes) and not any(
        listing.texts for place in homes.values() for _, listing in folders.below(str(place))
    )


def _classes(folders: Folders, place: Path) -> list[str]:
    return [name for name in folders.listing(str(place)).folders if folders.has_images(f"{place}/{name}")]


def _has_classes(folders: Folders, place: Path, fewest: int) -> bool:
    listing = folders.listing(str(place))
    if listing.images or {"images", "labels"} & set(listing.folders):
        return False
    return len(_classes(folders, place)) >= fewest
