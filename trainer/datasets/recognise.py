"""Which format a source tree is in, and where its description lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml as pyyaml

from trainer.core.errors import DatasetError
from trainer.datasets.data_yaml import load_yaml
from trainer.datasets.folders import Folders
from trainer.datasets.found import Found, Report, shown
from trainer.datasets.yolo_format import Tree, read_yolo

YAML_SUFFIXES = (".yaml", ".yml")
USUAL_NAMES = ("data", "dataset")
DEEPEST_YAML = 3  # folders below the root in which a description is looked for


def recognise(tree: Tree, entry: Path | None, report: Report) -> Found:
    """The dataset in a tree. `entry` is the file that the reference named, if it named one.

    Raises `DatasetError` when nothing there is a dataset, or several things are.
    """
    if entry is not None and entry.is_file():
        return _from_file(tree, entry, report)
    home = entry or tree.root
    folders = Folders(tree.root, tree.admit, report, tree.stop)
    yaml = _the_yaml(folders, home)
    if yaml:
        return read_yolo(tree, yaml, report)
    found = read_yolo(Tree(home, tree.is_owned, tree.admit, tree.stop), None, report)
    if not found.samples:
        raise DatasetError(f"No images were found in {shown(home.name)}; the dataset needs a data.yaml or an images folder.")
    return found


def _from_file(tree: Tree, entry: Path, report: Report) -> Found:
    return read_yolo(tree, entry, report)


def _the_yaml(folders: Folders, home: Path) -> Path | None:
    """The one dataset YAML below a folder: of several, a data.yaml or dataset.yaml nearest to the top."""
    found = list(_yamls(folders, str(home), 0))
    if not found:
        return None
    depth = min(depth for depth, _ in found)
    nearest = [path for level, path in found if level == depth]
    for name in USUAL_NAMES:
        usual = [path for path in nearest if path.stem.lower() == name]
        if len(usual) == 1:
            return usual[0]
    if len(nearest) > 1:
        names = ", ".join(shown(folders.relative(str(path))) for path in nearest[:10])
        raise DatasetError(f"The dataset has several YAML files ({names}); name the one that is meant in data_yaml.")
    return nearest[0]


def _yamls(folders: Folders, folder: str, depth: int) -> Iterator[tuple[int, Path]]:
    listing = folders.listing(folder)
    for name in listing.others:
        path = Path(folder) / name
        if name.lower().endswith(YAML_SUFFIXES) and _is_dataset(path):
            yield depth, path
    for name in listing.folders if depth < DEEPEST_YAML else ():
        if len(listing.folders) < 200:  # class folders, not places for descriptions
            yield from _yamls(folders, f"{folder}/{name}", depth + 1)


def _is_dataset(path: Path) -> bool:
    try:
        values = load_yaml(path, Report())
    except (DatasetError, pyyaml.YAMLError, OSError):
        return path.stem.lower() in USUAL_NAMES  # to be refused with its reason
    return bool(values.keys() & {"names", "train", "nc"})
