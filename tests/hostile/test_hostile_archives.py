"""Hostile archives: each is rejected in bounded time and writes no file outside the root."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile

import pytest

from tests.hostile.references import message_of, parse
from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.datasets.source.archive import extract
from trainer.datasets.untrusted import Limits

pytestmark = pytest.mark.usefixtures("_time_limit")


def zip_of(name, content=b"x", mode=0, **changes):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = mode << 16
        for key, value in changes.items():
            setattr(info, key, value)
        archive.writestr(info, content)
    return out.getvalue()


def tar_of(*members, end=True):
    out = io.BytesIO()
    for name, kind, target, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, len(content)
        out.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        out.write(content + b"\0" * (-len(content) % 512))
    return out.getvalue() + (b"\0" * 1024 if end else b"")


def file(name, content=b"x"):
    return name, tarfile.REGTYPE, "", content


def huge_header(kind, size):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096


def bomb(size):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.txt", "w") as member:
        for _ in range(size >> 20):
            member.write(b"\0" * (1 << 20))
    return out.getvalue()


def replaced(data, old, new):
    assert old in data
    return data.replace(old, new)


def two(name, other):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"1")
        archive.writestr(other, b"2")
    return out.getvalue()


def xz_bomb():
    """Return an xz file whose header declares a dictionary of 1.5 GiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(tar_of(file("a.txt")), filters=filters))
    import zlib

    header = bytes(data[12 : 12 + (data[12] + 1) * 4])
    changed = bytearray(header[:-4])
    changed[4] = 39  # the code of the dictionary size in the xz format
    data[12 : 12 + len(header)] = changed + struct.pack("<I", zlib.crc32(changed))
    return bytes(data)


def headers(kind, number):
    """Return a tar with many headers in a row that describe the next member."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 19
    return (header.tobuf(tarfile.USTAR_FORMAT) + b"19 comment=a header".ljust(512, b"\0")) * number + b"\0" * 1024


def hidden_index(size):
    """Return a zip whose end record declares a central directory of `size` bytes, and has a signature as its offset."""
    return b"PK\x03\x04" + b"\0" * 26 + struct.pack("<4s4HL4sH", b"PK\x05\x06", 0, 0, 9, 9, size, b"PK\x05\x06", 0)


ARCHIVES = {
    "zip: path traversal": lambda: zip_of("../../secret/x.txt"),
    "zip: path traversal in the middle": lambda: zip_of("a/../../x.txt"),
    "zip: path traversal with backslashes": lambda: zip_of("..\\..\\x.txt"),
    "zip: absolute path": lambda: zip_of("/tmp/x.txt"),
    "zip: Windows drive": lambda: zip_of("C:\\x.txt"),
    "zip: network path": lambda: zip_of("\\\\server\\share\\x.txt"),
    "zip: NUL in a name": lambda: zip_of("a\0b.txt"),
    "zip: newline in a name": lambda: zip_of("a\nb.txt"),
    "zip: escape sequence in a name": lambda: zip_of("\x1b[2Ja.txt"),
    "zip: file name of 10,004 characters": lambda: zip_of("a" * 10_000 + ".txt"),
    "zip: file name of 404 bytes": lambda: zip_of("é" * 200 + ".txt"),
    "zip: deeply nested path": lambda: zip_of("a/" * 200 + "x.txt"),
    "zip: symlink": lambda: zip_of("x.txt", b"/etc/passwd", mode=0o120777),
    "zip: device": lambda: zip_of("x.txt", mode=0o020666),
    "zip: named pipe": lambda: zip_of("x.txt", mode=0o010666),
    "zip: encrypted member": lambda: replaced(
        zip_of("x.txt"), b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ),
    "zip: unknown compression method": lambda: replaced(
        zip_of("x.txt"),
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x08",
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63",
    ),
    "zip: LZMA compression": lambda: zip_of("x.txt", compress_type=zipfile.ZIP_LZMA),
    "zip: duplicate name": lambda: two("a.txt", "./a.txt"),
    "zip: file, then folder with the same name": lambda: two("a.txt", "a.txt/b.txt"),
    "zip: folder, then file with the same name": lambda: two("a.txt/b.txt", "a.txt"),
    "zip: decompression bomb": lambda: bomb(128 << 20),
    "zip: truncated": lambda: zip_of("x.txt", b"x" * 1000)[:60],
    "zip: wrong checksum": lambda: replaced(zip_of("x.txt", b"hello"), struct.pack("<I", 0x3610A686), b"\1\2\3\4"),
    "zip: only an end record": lambda: b"PK\x05\x06" + b"\0" * 18,
    "zip: central directory outside the file": lambda: b"PK\x05\x06" + b"\0" * 8 + b"\xff" * 8 + b"\0\0",
    "zip: only an empty folder": lambda: zip_of("folder/"),
    "zip: no dataset files": lambda: zip_of("setup.py"),
    "zip: random content": lambda: b"PK\x03\x04" + b"garbage" * 100,
    "tar: path traversal": lambda: tar_of(file("../../secret/x.txt")),
    "tar: absolute path": lambda: tar_of(file("/tmp/x.txt")),
    "tar: symlink": lambda: tar_of(("a.txt", tarfile.SYMTYPE, "/etc/passwd", b"")),
    "tar: symlink to a folder, and a file inside the symlink": lambda: tar_of(
        ("a", tarfile.SYMTYPE, "../../secret", b""),
        file("a/data.yaml", b"owned"),
    ),
    "tar: hard link": lambda: tar_of(("a.txt", tarfile.LNKTYPE, "/etc/passwd", b"")),
    "tar: character device": lambda: tar_of(("a.txt", tarfile.CHRTYPE, "", b"")),
    "tar: block device": lambda: tar_of(("a.txt", tarfile.BLKTYPE, "", b"")),
    "tar: named pipe": lambda: tar_of(("a.txt", tarfile.FIFOTYPE, "", b"")),
    "tar: sparse file": lambda: tar_of(("a.txt", tarfile.GNUTYPE_SPARSE, "", b"")),
    "tar: unknown member type": lambda: tar_of(("a.txt", b"Z", "", b"")) + b"",
    "tar: name that is not UTF-8": lambda: tar_of(file("\udcff.txt")),
    "tar: duplicate name": lambda: tar_of(file("a.txt"), file("a.txt")),
    "tar: huge PAX header": lambda: huge_header(tarfile.XHDTYPE, 1 << 32),
    "tar: huge global header": lambda: huge_header(tarfile.XGLTYPE, 1 << 32),
    "tar: huge header for a long name": lambda: huge_header(tarfile.GNUTYPE_LONGNAME, 1 << 32),
    "tar: negative size": lambda: replaced(
        tar_of(file("a.txt", b"x" * 512)),
        b"00000001000\0",
        b"\xff" * 12,
    ),
    "tar: many PAX headers in a row": lambda: headers(tarfile.XHDTYPE, 5000),
    "tar: many global headers in a row": lambda: headers(tarfile.XGLTYPE, 5000),
    "tar: many long names in a row": lambda: headers(tarfile.GNUTYPE_LONGNAME, 5000),
    "tar: no end marker": lambda: tar_of(file("a.txt"), end=False),
    "tar: truncated": lambda: tar_of(file("a.txt", b"x" * 5000))[:1000],
    "tar: gzip bomb": lambda: gzip.compress(tar_of(file("a.txt", b"\0" * (100 << 20))), 9),
    "tar: gzip bomb in a skipped member": lambda: gzip.compress(tar_of(file("a.bin", b"\0" * (100 << 20))), 9),
    "tar: gzip bomb after the end marker": lambda: gzip.compress(tar_of(file("a.txt")) + b"\0" * (100 << 20), 9),
    "tar: xz with a huge dictionary": xz_bomb,
    "tar: empty gzip": lambda: gzip.compress(b""),
    "tar: random content in gzip": lambda: gzip.compress(os.urandom(5000)),
    "tar: truncated gzip": lambda: gzip.compress(tar_of(file("a.txt", os.urandom(5000))))[:3000],
    "tar: damaged bzip2": lambda: b"BZh9" + os.urandom(1000),
    "tar: damaged xz": lambda: b"\xfd7zXZ\x00" + os.urandom(1000),
    "7z archive": lambda: b"7z\xbc\xaf\x27\x1c" + b"\0" * 100,
    "RAR archive": lambda: b"Rar!\x1a\x07\x00" + b"\0" * 100,
}


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_hostile_archive_is_rejected(place, fetcher, make):
    (place / "root/set.zip").write_bytes(make())
    with pytest.raises(DatasetError) as error:
        fetcher.fetch(parse("set.zip", place / "root"), place / "root/run", StopSignal(), lambda _: None)
    assert "set.zip" in message_of(error)
    assert list((place / "root/.cache/tmp").iterdir()) == []
    assert list((place / "root/.cache").glob("trees/*")) == []


LIMITED = {
    "too many members": (Limits(members=3), lambda: tar_of(*(file(f"{n}.txt") for n in range(4)))),
    "too many empty folders": (
        Limits(members=3),
        lambda: tar_of(*((f"{n}", tarfile.DIRTYPE, "", b"") for n in range(4))),
    ),
    "too many bytes in a tar": (Limits(bytes=3000), lambda: tar_of(file("a.txt", b"x" * 4000))),
    "too many bytes in a zip": (Limits(bytes=3000), lambda: zip_of("a.txt", b"x" * 4000)),
}


@pytest.mark.parametrize(("limits", "make"), LIMITED.values(), ids=LIMITED)
def test_archive_over_limit_is_rejected(tmp_path, limits, make):
    (tmp_path / "a").write_bytes(make())
    with pytest.raises(DatasetError, match="more than"):
        extract(tmp_path / "a", tmp_path / "out", StopSignal(), limits=limits)


def test_archive_members_that_could_run_code_are_not_extracted(place, fetcher):
    (place / "root/set.tar").write_bytes(
        tar_of(
            file("labels/train.cache"),
            file("images/a.npy"),
            file("hubconf.py"),
            file(".git/config"),
            file("model.pt"),
            file("images/-rf.jpg"),
            file("data.yaml"),
        )
    )
    fetched = fetcher.fetch(parse("set.tar", place / "root"), place / "root/run", StopSignal(), lambda _: None)
    assert sorted(p.name for p in fetched.root.rglob("*") if p.is_file()) == ["-rf.jpg", "data.yaml"]


def test_size_of_the_list_of_members_is_found_behind_other_signatures(tmp_path):
    (tmp_path / "a").write_bytes(hidden_index(65 << 20))
    with pytest.raises(DatasetError, match="list of members of more than 64 MiB"):
        extract(tmp_path / "a", tmp_path / "out", StopSignal())
