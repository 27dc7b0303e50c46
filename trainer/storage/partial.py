"""The beginning of a download, kept beside its target until it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trainer.core.errors import Unavailable
from trainer.core.ports import ObjectInfo
from trainer.storage.files import BLOCK, disk_errors

LARGE = 8 * 1024 * 1024  # bytes; below it, fetching again is cheaper than remembering


class PartialFile:
    """`<name>.part`, and for a large object `<name>.part.json`, which says of what content it is the beginning."""

    def __init__(self, path: Path) -> None:
        self._target = path
        self._part = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.etag: str | None = None
        self.bytes = self.offset = 0
        with disk_errors(self._part):
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._recall()

    def _recall(self) -> None:
        try:
            note = json.loads(self._note.read_bytes())
            self.etag, self.bytes = str(note["etag"]), int(note["bytes"])
            # the last byte is always fetched again: the answer to it shows that the object is still the same
            self.offset = max(0, min(self._part.stat().st_size, self.bytes - 1))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            self.etag = None
            return
        os.truncate(self._part, self.offset)
        with self._part.open("rb") as part:
            while block := part.read(BLOCK):
                self._md5.update(block)

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Append to what is there; a disk error leaves nothing behind."""
        try:
            with disk_errors(self._part), self._part.open("ab") as out:
                yield out
        except BaseException as error:
            if isinstance(error.__cause__, OSError):
                self.discard()
            raise

    def begin(self, info: ObjectInfo) -> None:
        """Forget what is there and begin with the first byte of `info`."""
        self.discard()
        self.etag, self.bytes = info.etag, info.bytes
        if info.bytes > LARGE:
            with disk_errors(self._note):
                self._note.write_text(json.dumps({"etag": info.etag, "bytes": info.bytes}))

    def append(self, out: BinaryIO, block: bytes) -> None:
        out.write(block)
        self._md5.update(block)
        self.offset += len(block)

    def publish(self, info: ObjectInfo) -> None:
        """Make it the target, if it is what the store says it is."""
        whole = self.offset == info.bytes
        # a multi-part etag (with a dash) is no digest of the content
        if not whole or (re.fullmatch("[0-9a-f]{32}", info.etag) and self._md5.hexdigest() != info.etag):
            self.discard()
            raise Unavailable(f"{info.ref.key!r} arrived damaged: its size or its checksum is wrong")
        with disk_errors(self._target):
            if info.bytes > LARGE:
                with self._part.open("rb") as part:
                    os.fsync(part.fileno())
            self._part.replace(self._target)
            self._note.unlink(missing_ok=True)

    def leave(self) -> None:
        """Keep a beginning that is worth going on from, remove any other."""
        if self.etag is None or self.bytes <= LARGE:
            self.discard()

    def discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.etag, self.bytes, self.offset = None, 0, 0
