"""Keep facts about images between runs by file identity, so that an unchanged file is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

from trainer.core.dataset import DatasetOrder
from trainer.datasets.images.header import Facts

VERSION = 2  # increase it when `images.header.facts` changes; files with another version are ignored
LARGEST = 1 << 30  # bytes of a file; one million images need 0.2 GB
# number and total bytes of the files to keep; the least recently used files are removed
MAX_DATASETS, MAX_BYTES = 200, 4 << 30


class FactsCache:
    """A folder with one JSON file per dataset. The folder can be removed at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, order: DatasetOrder) -> dict[str, Facts]:
        """Return the saved facts about the images of an order, by file identity. A missing or damaged file is ignored.

        Facts of another owner's runs are never returned.
        """
        path = self._path(order)
        try:
            document = json.loads(path.read_bytes())
            with contextlib.suppress(OSError):  # a confined process cannot do this: `lend` does it
                os.utime(path)
            return _facts(document) if document["version"] == VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def save(self, order: DatasetOrder, found: dict[str, Facts]) -> None:
        """Save `found` for the owner's next run, in place of the facts that were saved before."""
        # if the disk is full or read-only, the next run will be slower, but this run must not fail
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f".{uuid.uuid4()}"
            try:
                temporary.write_text(json.dumps({"version": VERSION, **_columns(found)}), encoding="utf-8")
                temporary.replace(self._path(order))
            finally:
                temporary.unlink(missing_ok=True)
            self._evict()

    def lend(self, order: DatasetOrder, folder: Path) -> None:
        """Put the facts of an order into the new folder `folder`, where a `FactsCache` in another process uses them."""
        folder.mkdir()
        path = self._path(order)
        with contextlib.suppress(OSError):
            os.utime(path)
            os.link(path, folder / path.name)  # the other process replaces this file, and never changes it

    def take_back(self, order: DatasetOrder, folder: Path) -> None:
        """Keep the facts that the other process saved in `folder`. They are used only for the same owner and sources."""
        path = self._path(order)
        new = folder / path.name
        with contextlib.suppress(OSError):
            found = new.lstat()
            is_new = not path.exists() or not os.path.samestat(found, path.stat())
            if is_new and stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST:
                self._folder.mkdir(parents=True, exist_ok=True)
                new.replace(path)
                self._evict()

    def _path(self, order: DatasetOrder) -> Path:
        key = json.dumps([order.owner, order.sources]).encode()
        return self._folder / f"{hashlib.sha256(key).hexdigest()}.json"

    def _evict(self) -> None:
        found = sorted(
            ((path.stat(), path) for path in self._folder.glob("*.json")), key=lambda each: -each[0].st_mtime_ns
        )
        total = 0
        for number, (status, path) in enumerate(found):
            total += status.st_size
            if number >= MAX_DATASETS or total > MAX_BYTES:
                path.unlink(missing_ok=True)


def _columns(found: dict[str, Facts]) -> dict[str, object]:
    """Return one text or list per field. This format is read faster than one list per image."""
    columns = list(zip(*found.values(), strict=True)) or [()] * len(Facts._fields)
    document: dict[str, object] = dict(zip(Facts._fields, columns, strict=True))
    return document | {"identity": "\n".join(found), "digest": "\n".join(fact.digest.hex() for fact in found.values())}


def _facts(document: dict[str, Any]) -> dict[str, Facts]:
    keys = document["identity"].split("\n") if document["identity"] else []
    document["digest"] = map(bytes.fromhex, document["digest"].split("\n") if keys else ())
    columns = (document[name] for name in Facts._fields)
    return {key: Facts(*row) for key, row in zip(keys, zip(*columns, strict=True), strict=True)}


def identity(path: str, *, is_owned: bool) -> str | None:
    """Return an identity that changes with the file, or None if the file does not exist.

    The identity includes the change time, which no user can set. The only exception are cached objects: the folder of
    each run has a hard link to the object, and each new link changes this time. Their modification time is computed from
    the identity of their content, and no run can write to them.
    """
    try:
        info = os.stat(path)  # noqa: PTH116 - creating 50,000 Path objects takes longer than the calls
    except OSError:
        return None
    changed = 0 if is_owned and info.st_nlink > 1 else info.st_ctime_ns
    return f"{info.st_dev}.{info.st_ino}.{info.st_size}.{info.st_mtime_ns}.{changed}"
