import gzip
import io
import tarfile
import threading
import zipfile

import pytest

from trainer.core.errors import DatasetError
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.source import archive as archive_module
from trainer.datasets.source.archive import extract, is_archive, sniff
from trainer.datasets.untrusted import Limits, safe_name

FILES = {"data.yaml": b"names: [a]\n", "images/train/a.jpg": b"\xff\xd8" + b"x" * 3000, "labels/train/a.txt": b""}


def zipped(path, files=FILES, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path, files=FILES, mode="w:gz", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def unpacked(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "make",
    [
        zipped,
        lambda p: zipped(p, method=zipfile.ZIP_STORED),
        lambda p: zipped(p, method=zipfile.ZIP_BZIP2),
        lambda p: tarred(p, mode="w"),
        lambda p: tarred(p, mode="w:gz"),
        lambda p: tarred(p, mode="w:bz2"),
        lambda p: tarred(p, mode="w:xz"),
        lambda p: tarred(p, mode="w", format=tarfile.PAX_FORMAT),
        lambda p: tarred(p, mode="w", format=tarfile.GNU_FORMAT),
        lambda p: tarred(p, mode="w", format=tarfile.USTAR_FORMAT),
    ],
)
def test_common_archives_without_suffix_are_extracted(tmp_path, make):
    moved = []
    got = extract(make(tmp_path / "archive"), tmp_path / "out", StopSignal(), on_bytes=moved.append)
    assert unpacked(tmp_path / "out") == FILES
    assert (got.files, got.extracted_bytes, sum(moved)) == (3, 3013, 3013)
    assert got.report.findings == ()


def test_long_member_names_are_kept(tmp_path):
    files = {"/".join(["folder" * 10] * 5) + "/a.txt": b"1"}
    for number, kind in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        extract(tarred(tmp_path / f"{number}", files, format=kind), tmp_path / f"out{number}", StopSignal())
        assert unpacked(tmp_path / f"out{number}") == files


def test_xz_with_several_streams_is_read_completely(tmp_path):
    import lzma

    plain = tarred(tmp_path / "a.tar", mode="w").read_bytes()
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(plain[:1000]) + lzma.compress(plain[1000:]) + b"\0" * 8)
    extract(tmp_path / "a.tar.xz", tmp_path / "out", StopSignal())
    assert unpacked(tmp_path / "out") == FILES


def test_only_selected_members_are_extracted(tmp_path):
    for number, make in enumerate((zipped, tarred)):
        out = tmp_path / f"out{number}"
        archive = make(tmp_path / f"{number}", {**FILES, "labels/train.cache": b"evil", "__MACOSX/._a.jpg": b""})
        extract(archive, out, StopSignal(), wanted=lambda name: not name.endswith("cache") and "MACOSX" not in name)
        assert unpacked(out) == FILES


def test_total_size_of_zip_is_reported(tmp_path):
    totals = []
    extract(zipped(tmp_path / "a.zip"), tmp_path / "out", StopSignal(), on_total=totals.append)
    assert totals == [3013]


def test_extracted_files_are_read_only(tmp_path):
    extract(zipped(tmp_path / "a.zip"), tmp_path / "out", StopSignal())
    assert (tmp_path / "out/data.yaml").stat().st_mode & 0o777 == 0o444


def test_member_names_that_differ_only_in_case_are_reported(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"A.jpg": b"1", "a.jpg": b"2", "b.jpg": b"3"})
    (finding,) = extract(archive, tmp_path / "out", StopSignal()).report.findings
    assert (finding.level, finding.count, finding.examples) == ("warning", 1, ("A.jpg and a.jpg",))


def test_member_names_of_windows_and_mac_are_normalized(tmp_path):
    archive = tarred(tmp_path / "a.tar", {"images\\train\\a.jpg": b"1", "./labels//cafe\u0301.txt": b"2"})
    extract(archive, tmp_path / "out", StopSignal())
    assert unpacked(tmp_path / "out") == {"images/train/a.jpg": b"1", "labels/caf\xe9.txt": b"2"}


def test_extraction_can_be_stopped(tmp_path):
    stop = StopSignal()
    stop.set(StopReason.CANCELED)
    for number, make in enumerate((zipped, tarred)):
        with pytest.raises(Stopped):
            extract(make(tmp_path / f"{number}"), tmp_path / f"out{number}", stop)


def test_extraction_of_large_file_can_be_stopped(tmp_path):
    archive = tarred(tmp_path / "a.tar.gz", {"a.txt": b"\0" * (150 << 20)})
    stop = StopSignal()
    threading.Timer(0.05, stop.set, [StopReason.CANCELED]).start()
    with pytest.raises(Stopped):
        extract(archive, tmp_path / "out", stop, limits=Limits(ratio=1e9), on_bytes=lambda _: stop.wait(0.01))


def test_zip_with_wrong_declared_size_is_rejected(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"a.txt": b"x" * 5000}, zipfile.ZIP_STORED)
    data = archive.read_bytes()
    size = (5000).to_bytes(4, "little")
    archive.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(DatasetError):
        extract(archive, tmp_path / "out", StopSignal())


@pytest.mark.parametrize("is_zip64", [False, True])
def test_zip_with_too_large_index_is_rejected_before_index_is_read(tmp_path, monkeypatch, is_zip64):
    """The module zipfile reads the whole index into memory before the service can count the members."""
    size = archive_module.ZIP_INDEX + 1
    end = (0xFFFFFFFF if is_zip64 else size).to_bytes(4, "little")
    zip64_end = b"PK\x06\x06" + bytes(36) + size.to_bytes(8, "little") + bytes(8)
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(96) + zip64_end * is_zip64 + b"PK\x05\x06" + bytes(8) + end + bytes(6))
    opened = []
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: opened.append(1) or zipfile.BadZipFile())
    with pytest.raises(DatasetError, match="has a list of members of more than 64 MiB"):
        extract(path, tmp_path / "out", StopSignal())
    assert not opened


def test_zip_index_with_exactly_the_maximum_size_is_accepted(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip")
    monkeypatch.setattr(archive_module, "ZIP_INDEX", archive_module._zip_index_size(path))
    extract(path, tmp_path / "out", StopSignal())
    assert unpacked(tmp_path / "out") == FILES


def test_damage_at_end_of_compressed_tar_is_detected(tmp_path):
    archive = tarred(tmp_path / "a.tar", mode="w")
    packed = bytearray(gzip.compress(archive.read_bytes()))
    packed[-6] ^= 1  # this byte is in the gzip checksum, which is checked after all data is read
    (tmp_path / "b.tgz").write_bytes(packed)
    with pytest.raises(DatasetError, match="damaged"):
        extract(tmp_path / "b.tgz", tmp_path / "out", StopSignal())


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated_tar_is_rejected(tmp_path, mode, share):
    import random

    noise = random.Random(1)
    archive = tarred(tmp_path / "a.tar", {f"{n}.txt": noise.randbytes(2000) for n in range(30)}, mode)
    data = archive.read_bytes()
    end = len(data) if mode != "w" else len(data) - 10240  # a cut in the padding after the last file loses no data
    archive.write_bytes(data[: int(end * share)])
    with pytest.raises(DatasetError, match="damaged"):
        extract(archive, tmp_path / "out", StopSignal())


def test_broken_tar_header_is_not_read_as_end_of_archive(tmp_path):
    data = bytearray(tarred(tmp_path / "a.tar", {"a.txt": b"1", "b.txt": b"2"}, "w").read_bytes())
    data[1024 + 150] ^= 0xFF  # this byte is in the checksum of the second header
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DatasetError, match="damaged"):
        extract(tmp_path / "a.tar", tmp_path / "out", StopSignal())


def test_archive_is_detected_by_first_bytes_or_by_suffix(tmp_path):
    assert sniff(zipped(tmp_path / "1")) == "zip"
    assert sniff(tarred(tmp_path / "2", mode="w")) == "tar"
    assert sniff(tarred(tmp_path / "3", mode="w:xz")) == "tar"
    (tmp_path / "4").write_text("names: [a]")
    assert sniff(tmp_path / "4") is None
    assert is_archive("A.ZIP")
    assert is_archive("a.tar.bz2")
    assert not is_archive("a.yaml")


def test_member_names_are_accepted_up_to_the_depth_limit():
    assert safe_name("a/" * 31 + "b", Limits(), "x") == "a/" * 31 + "b"
    assert safe_name("./", Limits(), "x") is None
    with pytest.raises(DatasetError, match=r"x: the name .* folders deep. Rename it"):
        safe_name("a/" * 32 + "b", Limits(), "x")
