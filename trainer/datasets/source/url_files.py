"""Fetch datasets whose files are single URLs: a YAML with lists of images, or an NDJSON export."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urljoin

from trainer.core.errors import DatasetError, ObjectMissing
from trainer.core.stop import StopSignal
from trainer.core.text import shown, shown_url
from trainer.core.transfer import Meter
from trainer.datasets.cache.content import ContentCache, Put
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.decoder import Decoder, answers_checked
from trainer.datasets.source.image_lists import ReadEntries, ReadLists, is_image, read_places
from trainer.datasets.source.manifest import suffix
from trainer.datasets.source.ndjson_export import LABELS, MAX_TEXT_BYTES, YAML, ListedImage, ReadExport, read_images
from trainer.datasets.source.roots import Roots
from trainer.datasets.source.transfer import Transfer, in_parallel, link_tree
from trainer.disk.removal import remove_tree
from trainer.remote.web import Downloaded, GuardedClient

MAX_IMAGE_BYTES = 1 << 30  # bytes
MAX_SECONDS = 900.0  # for the download of one image, label file or list


@dataclass(frozen=True, kw_only=True)
class WebSource:
    """Fetches the URLs of a dataset into a staging tree, through the cache."""

    decode: Decoder
    cache: ContentCache
    web: GuardedClient
    roots: Roots
    concurrency: int

    def from_yaml(self, url: str, file: Path, transfer: Transfer) -> None:
        """Put the YAML `file` of `url` into the staging folder as data.yaml, and fetch its images and labels."""
        places = self.decode(ReadEntries(yaml=str(file), url=url), transfer.stop).places
        with on_this_disk(transfer.staging):
            link_tree([("data.yaml", file)], transfer.staging)
        for place in dict.fromkeys(places):
            if not is_image(place):
                self._fetch_list(url, place, transfer)
        with self._lists(transfer) as made:
            job = ReadLists(places=places, tree=str(transfer.staging), made=str(made), url=url)
            count = self.decode(job, transfer.stop).count
            meter = Meter(transfer.on_event, total_files=count)
            with self.cache.batch() as batch:
                download = functools.partial(self._image_with_label, batch.put, url, transfer.staging, meter)
                downloads = (functools.partial(download, place) for place in read_places(made))
                in_parallel(downloads, min(self.concurrency, count), transfer.stop)
        self.cache.make_room(0)  # the total size was unknown before the downloads

    def from_ndjson(self, file: Path, name: str, transfer: Transfer, home: Path | None = None) -> str | None:
        """Create a YOLO dataset in the staging folder from an export.

        Return the name of its YAML, or None for classification. `home` is the folder of local images.
        """
        with self._lists(transfer) as made:
            export = self.decode(ReadExport(file=str(file), name=name, made=str(made)), transfer.stop)
            meter = Meter(transfer.on_event, total_files=export.count)
            with self.cache.batch() as batch:
                bring = functools.partial(self._exported_image, batch.put, transfer.staging, meter)
                downloads = (
                    functools.partial(bring, image.url or self._local_image(image, export.folder, home), image.place)
                    for image in read_images(made)
                )
                in_parallel(downloads, min(self.concurrency, export.count), transfer.stop)
            self.cache.make_room(0)  # the total size was unknown before the downloads
            # the confined process that wrote `made` has ended; a rename does not follow links
            with on_this_disk(transfer.staging):
                for part in (LABELS, YAML):
                    if os.path.lexists(made / part):
                        (made / part).rename(transfer.staging / part)
        return YAML if os.path.lexists(transfer.staging / YAML) else None

    @contextlib.contextmanager
    def _lists(self, transfer: Transfer) -> Iterator[Path]:
        """Yield a new folder beside the staging folder, for the output of a job. Remove the folder afterwards."""
        made = transfer.staging.with_name(f"{transfer.staging.name}.lists")
        with on_this_disk(made):
            made.mkdir()
        try:
            with answers_checked():
                yield made
        finally:
            with contextlib.suppress(OSError):  # removed with the folder of the run
                remove_tree(made)

    def _fetch_list(self, url: str, place: str, transfer: Transfer) -> None:
        if suffix(place) != "txt":
            raise DatasetError(
                f"data_yaml: {shown(place)} in the YAML at {shown_url(url)} is a folder; folders cannot be listed over "
                "http(s). Use .txt lists of images in train: and val:, an archive of the dataset, or an NDJSON export."
            )
        self._fetch(
            self.cache.put, urljoin(url, quote(place)), place, transfer.staging, transfer.stop, max_bytes=MAX_TEXT_BYTES
        )

    def _image_with_label(self, put: Put, url: str, staging: Path, meter: Meter, place: str, stop: StopSignal) -> None:
        if not is_image(place):
            raise DatasetError(f"{shown(place)} in the lists of {shown_url(url)} is not an image.")
        self._fetch(put, urljoin(url, quote(place)), place, staging, stop, meter, max_bytes=MAX_IMAGE_BYTES)
        label = label_place(place)
        # an image without a label file has no labels; two images can have the same label file
        with contextlib.suppress(ObjectMissing, FileExistsError):
            address = urljoin(url, quote(label))
            self._fetch(put, address, label, staging, stop, meter, max_bytes=MAX_TEXT_BYTES, may_be_empty=True)
        meter.finish_file()

    def _exported_image(
        self, put: Put, staging: Path, meter: Meter, source: str | Path, place: str, stop: StopSignal
    ) -> None:
        if isinstance(source, str):
            self._fetch(put, source, place, staging, stop, meter, max_bytes=MAX_IMAGE_BYTES)
        else:
            found = source.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_IMAGE_BYTES:
                raise DatasetError(f"{shown(place)} is not a file of at most {MAX_IMAGE_BYTES >> 20} MiB. Replace it.")
            with on_this_disk(staging):
                (staging / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, staging / place)
        meter.finish_file()

    def _fetch(
        self,
        put: Put,
        url: str,
        place: str,
        staging: Path,
        stop: StopSignal,
        meter: Meter | None = None,
        *,
        max_bytes: int,
        may_be_empty: bool = False,
    ) -> None:
        """Fetch one URL as `staging`/`place`, from the cache if the ETag of the server did not change."""
        with self.cache.temporary() as path, on_this_disk(staging):
            got = self.web.download(
                url,
                path,
                stop,
                max_bytes=max_bytes,
                max_seconds=MAX_SECONDS,
                on_bytes=meter.count if meter else None,
                is_known=lambda final, etag, size: self._linked(web_identity(final, etag, size), size, place, staging),
            )
            if not got.sha256:
                return
            if not got.bytes and not may_be_empty:
                raise DatasetError(f"{shown_url(url)} is empty. Upload the file again.")
            link_tree([(place, path)], staging)  # before `put`: later, the cache can evict the file at any time
            put(content_identity(got), path)
        self.cache.require_free(0)

    def _linked(self, identity: str, size: int, place: str, staging: Path) -> bool:
        known = self.cache.get(identity, size)
        try:
            link_tree([(place, known)] if known else [], staging)
        except FileNotFoundError:  # evicted after `get`
            return False
        return known is not None

    def _local_image(self, record: ListedImage, folder: str | None, home: Path | None) -> Path:
        if folder is None or home is None or "/" in record.file:
            raise DatasetError(f"The NDJSON record of {shown(record.file)} has no url. Export the dataset with URLs.")
        return self.roots.admit(home / folder / "images" / record.split / record.file)


def content_identity(got: Downloaded) -> str:
    """Return the identity of downloaded content, based on the strong ETag or, without an ETag, on the checksum."""
    return web_identity(got.url, got.etag, got.bytes) if got.etag else f"sha256\n{got.sha256}"


def web_identity(url: str, etag: str, size: int) -> str:
    """Return the identity of content with a strong ETag. The query of the URL is ignored, because signatures change."""
    return f"web\n{shown_url(url)}\n{etag}\n{size}"


def label_place(image: str) -> str:
    """Return the path of the label file: in `labels` instead of the last `images`, or beside the image."""
    folder, found, rest = f"/{image}".rpartition("/images/")
    place = f"{folder}/labels/{rest}" if found else image
    return str(PurePosixPath(place.lstrip("/")).with_suffix(".txt"))
