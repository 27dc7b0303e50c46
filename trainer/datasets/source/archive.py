"""Extract untrusted archives. Only regular files and folders are extracted, into the target folder, within limits.

A zip is checked as a whole before the first byte is written; a tar is checked while it is read. Declared sizes are not
trusted: extracted bytes are counted.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.core.text import shown
from trainer.datasets.findings import Report
from trainer.datasets.image_kinds import IMAGE_SUFFIXES
from trainer.datasets.source.tar_stream import CHUNK, Counted, StrictTarInfo, Xz
from trainer.datasets.untrusted import Limits, safe_name

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# extracted bytes; the ratio of smaller archives is not checked, because small texts compress well
RATIO_FROM = 64 << 20
# text that expands further would fill the memory of the process that parses it; real annotations compress 5 to 40 times
TEXT_RATIO, TEXT_RATIO_FROM = 100, 16 << 20  # expanded bytes
ZIP_INDEX = 64 << 20  # bytes of the central directory of a zip, which zipfile reads into memory
# LZMA is excluded, because zipfile does not limit its memory
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}

_ALLOWED = "only regular files and folders are allowed"


def is_archive(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def sniff(file: Path) -> str | None:
    """Return "zip" or "tar" according to the first bytes of the file, or None for any other file."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a user can replace it by a named pipe
    with os.fdopen(descriptor, "rb") as opened:
        head = opened.read(262 + 3)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[257:262] == b"ustar" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")):
        return "tar"
    return None


def extract(
    archive: Path,
    into: Path,
    stop: StopSignal,
    *,
    wanted: Callable[[str], bool] = lambda _: True,
    limits: Limits | None = None,
    name: str | None = None,
    on_total: Callable[[int], object] = lambda _: None,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> Extraction:
    """Extract the `wanted` members into the new or empty folder `into`. On an error, the caller removes the folder.

    `name` is the name of the archive in messages. The names of all members are checked, also of unwanted members.
    `on_total` is called with the declared total size of a zip before the first write. `on_bytes` is called with the
    size of each written piece. Raises `Stopped`, and `DatasetError` for damage, encryption, exceeded limits, unsafe
    names, and members that are not regular files or folders.
    """
    work = Extraction(archive, into, stop, name or archive.name, limits or Limits(), wanted, on_total, on_bytes)
    kind = sniff(archive)
    into.mkdir(parents=True, exist_ok=True)
    with work.damage_as_dataset_error():
        if kind == "zip":
            work.unzip()
        elif kind == "tar":
            work.untar()
        else:
            work.fail("is neither a zip nor a tar file. Create it again")
    if not work.files:
        work.fail("contains no images, .txt, YAML or JSON files")
    return work


@dataclass
class Extraction:
    """The extraction of one archive; the numbers count the written files and bytes."""

    archive: Path
    into: Path
    stop: StopSignal
    name: str
    limits: Limits
    wanted: Callable[[str], bool]
    on_total: Callable[[int], object]
    on_bytes: Callable[[int], object]
    files: int = 0
    extracted_bytes: int = 0
    text_bytes: int = 0
    members: int = 0
    spellings: dict[str, str] = field(default_factory=dict)  # lowercase path → path of the first member
    report: Report = field(default_factory=Report)

    def fail(self, why: str) -> NoReturn:
        raise DatasetError(f"Archive {shown(self.name)} {why}.")

    @contextmanager
    def damage_as_dataset_error(self) -> Iterator[None]:
        """Turn the exceptions of zipfile and tarfile for a damaged archive into `DatasetError`."""
        try:
            yield
        except RecursionError:  # tarfile calls itself for each header that describes the next header
            self.fail("has too many headers in a row. Create it again")
        except (ValueError, OverflowError, NotImplementedError) as error:
            self.fail(f"cannot be read ({error}). Create it again")
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            self.fail(f"has two members named {shown(Path(str(error.filename)).name)}. Create it again")
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, not of the archive
                raise
            self.fail(f"is damaged ({error}). Create and upload it again")

    def unzip(self) -> None:
        if _zip_index_size(self.archive) > ZIP_INDEX:
            self.fail(f"has a list of members of more than {ZIP_INDEX >> 20} MiB, which is the limit")
        with zipfile.ZipFile(self.archive) as opened:
            found = [(info, self._check_zip(info)) for info in opened.infolist()]
            members = [(info, path) for info, path in found if path is not None]
            total = sum(info.file_size for info, _ in members)
            self._within(total)
            self.on_total(total)
            for info, path in members:
                with opened.open(info) as source:
                    self._write(source, path)

    def untar(self) -> None:
        opener = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": Xz}
        with self.archive.open("rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            stream = Counted(opener[magic](raw) if magic in opener else raw, self._count)  # type: ignore[operator]
            # with a stream, a decompression bomb is stopped early, and nothing is read twice
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictTarInfo) as opened:  # type: ignore[call-overload]
                for member in opened:
                    path = self._check_tar(member)
                    source = opened.extractfile(member) if path is not None else None
                    if source is not None and path is not None:
                        self._write(source, path)
            while stream.read(CHUNK):  # read to the end, where the checksum is compared
                self.stop.raise_if_set()

    def _check_zip(self, info: zipfile.ZipInfo) -> str | None:
        if stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG, stat.S_IFDIR}:
            self.fail(f"contains the link or device {shown(info.orig_filename)}; {_ALLOWED}")
        path = self._admit(info.orig_filename, is_folder=info.is_dir())
        if path is not None and info.flag_bits & 0x1:
            self.fail(f"is encrypted ({shown(path)}). Create it without a password")
        if path is not None and info.compress_type not in _ZIP_METHODS:
            self.fail(f"has an unsupported compression method ({shown(path)}). Use Deflate")
        if path is not None and _is_text(path):
            self._text_within(info.file_size, info.compress_size, path)
        return path

    def _check_tar(self, member: tarfile.TarInfo) -> str | None:
        if member.issparse() or not (member.isreg() or member.isdir()):
            self.fail(f"contains the link, device or sparse file {shown(member.name)}; {_ALLOWED}")
        return self._admit(member.name, is_folder=member.isdir())

    def _admit(self, name: str, *, is_folder: bool) -> str | None:
        """Return the safe relative path of a member, or None if the member is skipped."""
        self.stop.raise_if_set()
        self.members += 1
        if self.members > self.limits.members:
            self.fail(f"has more than {self.limits.members:,} members")
        path = safe_name(name, self.limits, f"Archive {shown(self.name)}")
        if path is None or is_folder or not self.wanted(path):
            return None
        other = self.spellings.setdefault(path.casefold(), path)
        if other != path:
            self.report.add("names_differ_only_in_case", f"{other} and {path}")
        return path

    def _write(self, source: IO[bytes], path: str) -> None:
        target = self.into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # a confined process cannot change the mode of a file later
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444), "wb") as out:
            while chunk := source.read(CHUNK):
                self.stop.raise_if_set()
                self.extracted_bytes += len(chunk)
                self._within(self.extracted_bytes)
                if _is_text(path):
                    self.text_bytes += len(chunk)
                    self._text_within(self.text_bytes, self.archive.stat().st_size, path)
                out.write(chunk)
                self.on_bytes(len(chunk))
        self.files += 1

    def _count(self, extracted: int) -> None:
        self.stop.raise_if_set()
        self._within(extracted)

    def _within(self, extracted: int) -> None:
        if extracted > self.limits.bytes:
            self.fail(f"expands to more than {self.limits.bytes / 2**20:,.0f} MiB, which is the limit")
        if extracted > RATIO_FROM and extracted > max(1, self.archive.stat().st_size) * self.limits.ratio:
            self.fail(f"expands to more than {self.limits.ratio:g} times its size, which is the limit")

    def _text_within(self, expanded: int, archived: int, path: str) -> None:
        if expanded > TEXT_RATIO_FROM and expanded > max(1, archived) * TEXT_RATIO:
            self.fail(
                f"has text ({shown(path)}) that expands to more than {TEXT_RATIO} times its size, which is the limit"
            )


def _is_text(path: str) -> bool:
    return path.rpartition(".")[2].lower() not in IMAGE_SUFFIXES


def _zip_index_size(archive: Path) -> int:
    """Return the largest size of a central directory that an end record declares. zipfile reads one of these sizes.

    The comment or a field of the real end record can contain the signature of another end record.
    """
    with archive.open("rb") as opened:
        opened.seek(max(0, archive.stat().st_size - 65557))
        tail = opened.read()
    sizes = [0]
    for signature, place, length in ((b"PK\x05\x06", 12, 4), (b"PK\x06\x06", 40, 8)):
        at = tail.find(signature)
        while at >= 0:
            size = tail[at + place : at + place + length]
            if len(size) == length and size != b"\xff" * 4:  # in a zip64, the second record has the size
                sizes.append(int.from_bytes(size, "little"))
            at = tail.find(signature, at + 1)
    return max(sizes)
