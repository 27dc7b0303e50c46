"""The job that reads an NDJSON export, and the images that it lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.core.text import shown
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.decoder import Access, Room
from trainer.datasets.source.json_lines import read_lines, require_safe, write_lines
from trainer.datasets.source.ndjson import SPLITS, read_ndjson

MAX_TEXT_BYTES = 256 << 20  # bytes of a list, a YAML or an NDJSON file
IMAGES = "images.jsonl"
LABELS, YAML = "labels", "data.yaml"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The number of images in the export, and the folder of the images without a URL, or None."""

    count: int
    folder: str | None


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """An image of the export: its place in the tree, its URL or None, its file name and its split in the export."""

    place: str
    url: str | None
    file: str
    split: str


@dataclass(frozen=True, kw_only=True)
class ReadExport:
    """Write a YOLO dataset without its images into the empty folder `made`: IMAGES lists them, LABELS has the labels.

    For classification, YAML and LABELS are not written. `name` is the name of the export in messages.
    """

    file: str
    name: str
    made: str

    @property
    def access(self) -> Access:
        return Access(read=(self.file,), fill=(self.made,))

    def run(self, stop: StopSignal, room: Room) -> Exported:
        file, made = Path(self.file), Path(self.made)
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise DatasetError(
                f"NDJSON {shown(self.name)} is larger than {MAX_TEXT_BYTES >> 20} MiB. Split the dataset."
            )
        export = read_ndjson(file, self.name)
        with on_this_disk(made):
            write_lines(made / IMAGES, ([each.image, each.url, each.file, each.split] for each in export.records))
            for record in export.records:
                if record.label is not None:
                    path = made / record.label
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(record.rows, encoding="utf-8")
            if export.yaml is not None:
                import yaml  # imported here, because only confined processes need the library

                text = yaml.safe_dump(export.yaml, allow_unicode=True, sort_keys=False)
                (made / YAML).write_text(text, encoding="utf-8")
        return Exported(count=len(export.records), folder=export.folder)


def read_images(made: Path) -> Iterator[ListedImage]:
    """Yield the images that `ReadExport` wrote. Raises ValueError for content that the job does not write."""
    for place, url, file, split in read_lines(made / IMAGES):
        require_safe(place)
        is_text = isinstance(file, str) and isinstance(url, str | None)
        if not is_text or split not in SPLITS or place.split("/")[0] == LABELS:
            raise ValueError(f"{IMAGES} contains an invalid image")
        yield ListedImage(place=place, url=url, file=file, split=split)
