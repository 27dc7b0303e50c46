"""Read an untrusted tar from a stream. Limit the sizes of headers and the memory of xz, and require the end mark."""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

CHUNK = 1 << 20
XZ_MEMORY = 256 << 20  # bytes that the decompressor of xz may allocate; xz -9 needs 65 MiB
TAR_HEADER = 1 << 16  # bytes of a long name or a PAX header, which tarfile reads into memory
_TAR_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class StrictTarInfo(tarfile.TarInfo):
    """A tar header. A broken header is an error: tarfile would treat it as the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictTarInfo:
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise EOFError(f"a header is invalid, or the end mark is missing: {error}") from error
        if found.type in _TAR_EXTENSIONS and found.size > TAR_HEADER:
            raise ValueError(f"a header has {found.size:,} bytes, more than the maximum of {TAR_HEADER:,}")
        return found


@dataclass
class Counted:
    """A stream that calls `on_total` after each read, with the total number of bytes so far."""

    source: Reader
    on_total: Callable[[int], None]
    total: int = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self.source.read(size)
        self.total += len(data)
        self.on_total(self.total)
        return data


class Xz:
    """An .xz stream whose decompressor may use at most `XZ_MEMORY`. lzma.open has no such limit."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._left = b""
        self._decoder: lzma.LZMADecompressor | None = None

    def read(self, size: int = -1, /) -> bytes:
        while True:
            if self._decoder is None or self._decoder.eof:
                self._left = (self._decoder.unused_data if self._decoder else b"") or self._source.read(CHUNK)
                if not self._left.strip(b"\0"):  # the end of the stream, or padding before it
                    return b""
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
            elif self._decoder.needs_input:
                self._left = self._source.read(CHUNK)
                if not self._left:
                    raise EOFError("the compressed data ends early")
            data = self._decoder.decompress(self._left, max_length=size)
            self._left = b""
            if data:
                return data
