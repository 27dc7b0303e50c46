"""The jobs that read a YAML at an http(s) URL and its lists of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.core.text import shown, shown_url
from trainer.datasets.data_yaml import load_yaml, read_data_yaml
from trainer.datasets.decoder import Access, Room
from trainer.datasets.findings import Report
from trainer.datasets.image_kinds import IMAGE_SUFFIXES
from trainer.datasets.source.json_lines import read_lines, require_safe, write_lines
from trainer.datasets.source.manifest import suffix
from trainer.datasets.untrusted import Limits, safe_name

MAX_ENTRIES = 10_000
PLACES = "places.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The places of the lists and images that a YAML names, relative to the folder of the YAML."""

    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReadEntries:
    """Read the entries of the YAML at `url`: lists of images, or single images."""

    yaml: str
    url: str

    @property
    def access(self) -> Access:
        return Access(read=(self.yaml,))

    def run(self, stop: StopSignal, room: Room) -> Entries:
        data = read_data_yaml(load_yaml(Path(self.yaml), Report(), shown_url(self.url)), Report())
        if not data.splits:
            raise DatasetError(f"data_yaml: the YAML at {shown_url(self.url)} has neither train: nor val:.")
        base = inside(data.path or "", "path")
        entries = [entry for entries in data.splits.values() for entry in entries]
        if len(entries) > MAX_ENTRIES:
            raise DatasetError(f"data_yaml: the YAML at {shown_url(self.url)} has more than {MAX_ENTRIES:,} entries.")
        return Entries(places=tuple(inside(f"{base}/{entry}" if base else entry, "the YAML") for entry in entries))


@dataclass(frozen=True, kw_only=True)
class ListedImages:
    """The number of different images."""

    count: int


@dataclass(frozen=True, kw_only=True)
class ReadLists:
    """Write the places of all images into `made`/PLACES, each once. `tree` contains the lists.

    `places` are the entries of the YAML: a list in `tree`, or an image.
    """

    places: tuple[str, ...]
    tree: str
    made: str
    url: str

    @property
    def access(self) -> Access:
        return Access(read=(self.tree,), fill=(self.made,))

    def run(self, stop: StopSignal, room: Room) -> ListedImages:
        images: dict[str, None] = {}
        for place in self.places:
            stop.raise_if_set()
            images |= dict.fromkeys([place] if is_image(place) else _listed(Path(self.tree), place))
        if not images:
            raise DatasetError(f"data_yaml: the lists of {shown_url(self.url)} name no images.")
        write_lines(Path(self.made) / PLACES, images)
        return ListedImages(count=len(images))


def read_places(made: Path) -> Iterator[str]:
    """Yield the places that `ReadLists` wrote. Raises ValueError for content that the job does not write."""
    for place in read_lines(made / PLACES):
        require_safe(place)
        yield place


def is_image(place: str) -> bool:
    return suffix(place) in IMAGE_SUFFIXES


def inside(place: str, where: str) -> str:
    """Return a place as a safe relative path. Raises `DatasetError` with `where` in its message."""
    if "://" in place or place.startswith("/"):
        raise DatasetError(
            f"{shown(place)} in {shown(where)} must be a relative path, because the YAML is at an http(s) URL."
        )
    return safe_name(place, Limits(), f"In {shown(where)}") or ""


def _listed(tree: Path, place: str) -> Iterator[str]:
    text = (tree / place).read_text(encoding="utf-8-sig", errors="replace")
    folder = place.rpartition("/")[0]
    for line in map(str.strip, text.splitlines()):
        if line:
            yield inside(f"{folder}/{line}" if folder else line, f"the list {place}")
