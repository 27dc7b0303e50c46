"""A partial download, kept next to its target until it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import DEFAULT_BUFFER_SIZE
from pathlib import Path
from typing import BinaryIO, cast

from trainer.core.errors import MachineFailed, Unavailable
from trainer.core.ports import ObjectInfo
from trainer.core.stop import StopSignal
from trainer.disk import durable
from trainer.storage.files import BLOCK, disk_errors

LARGE = 8 * 1024 * 1024  # bytes; a smaller object is downloaded again instead of resumed
_SYNC = 256 * 1024 * 1024  # bytes between two syncs to disk
_MD5 = re.compile("[0-9a-f]{32}")  # the etag of a multi-part object has a dash and is not a checksum of the content


class PartialFile:
    """The file `<name>.part`.

    For a large object, the file `<name>.part.json` (the note) has the ETag, the size and the number of synced bytes.
    """

    def __init__(self, path: Path, stop: StopSignal) -> None:
        self._target = path
        self._part = Path(f"{path}.part")
        self._note = Path(f"{path}.part.json")
        self._noted = False
        self._forget()
        with disk_errors(self._part):
            self._recall(stop)

    def _forget(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.etag: str | None = None
        self.bytes = self.offset = self._safe = 0

    def _recall(self, stop: StopSignal) -> None:
        if not os.access(self._note, os.F_OK):  # most downloads have no note; this test is cheaper than an exception
            return
        self._noted, written = True, self._note.read_bytes()
        try:
            note = json.loads(written)
            etag, size, safe = str(note["etag"]), int(note["bytes"]), int(note["safe"])
            there = self._part.stat().st_size
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return
        # after a power cut, unsynced bytes may be zeros: keep these bytes only if a checksum can detect the zeros
        kept = there if _MD5.fullmatch(etag) else min(there, safe)
        # always request the last byte again: the response shows whether the object is still the same
        self.etag, self.bytes, self.offset = etag, size, max(0, min(kept, size - 1))
        os.truncate(self._part, self.offset)
        with self._part.open("rb") as part:
            while block := part.read(BLOCK):
                stop.raise_if_set()
                self._md5.update(block)

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Open the partial file for appending. A disk error removes the file."""
        try:
            with disk_errors(self._part), self._open() as out:
                try:
                    yield out
                finally:
                    if self.bytes > LARGE:
                        self._sync(out)
        except MachineFailed:
            self.discard()
            raise

    def begin(self, info: ObjectInfo) -> None:
        """Discard the content. The download of the object in `info` starts at its first byte."""
        self._forget()
        self._drop_note()
        self.etag, self.bytes = info.etag, info.bytes

    def append(self, out: BinaryIO, block: bytes) -> None:
        out.write(block)
        self._md5.update(block)
        self.offset += len(block)
        if self.bytes > LARGE and (self._safe == 0 or self.offset - self._safe >= _SYNC):
            self._sync(out)

    def publish(self, info: ObjectInfo) -> None:
        """Move the file to its target if size and checksum match `info`. Raises Unavailable otherwise."""
        whole = self.offset == info.bytes
        if not whole or (_MD5.fullmatch(info.etag) and self._md5.hexdigest() != info.etag):
            self.discard()
            raise Unavailable(f"{info.ref.key!r} is damaged after the download: its size or its checksum is wrong")
        with disk_errors(self._target):
            self._part.replace(self._target)
        self._drop_note()

    def leave(self) -> None:
        """Keep the partial file if its object is large enough to resume, otherwise remove it."""
        if self.etag is None or self.bytes <= LARGE:
            self.discard()

    def discard(self) -> None:
        with disk_errors(self._part):
            self._part.unlink(missing_ok=True)
        self._drop_note()
        self._forget()

    def _open(self) -> BinaryIO:
        mode = "ab" if self.offset else "wb"
        try:
            # an explicit buffer size: without this argument, Python checks whether the file is a terminal
            return cast(BinaryIO, self._part.open(mode, DEFAULT_BUFFER_SIZE))
        except FileNotFoundError:  # the folder is created only if it is missing: thousands of files share a few folders
            self._part.parent.mkdir(parents=True, exist_ok=True)
            return cast(BinaryIO, self._part.open(mode, DEFAULT_BUFFER_SIZE))

    def _drop_note(self) -> None:
        if self._noted:
            with disk_errors(self._note):
                self._note.unlink(missing_ok=True)
        self._noted = False

    def _sync(self, out: BinaryIO) -> None:
        """Sync the content to disk, then record the number of synced bytes."""
        out.flush()
        durable.sync(self._part)
        self._safe, self._noted = self.offset, True
        durable.write_text(self._note, json.dumps({"etag": self.etag, "bytes": self.bytes, "safe": self._safe}))
