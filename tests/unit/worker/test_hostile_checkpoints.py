"""A hostile checkpoint is skipped. If only its metadata is invalid, the metadata is ignored."""

import json
import os
import zipfile

import pytest

from tests.unit.worker.resume_harness import OTHER, Host
from trainer.core.resumption import Resume


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.mark.parametrize(
    "facts",
    [
        b"",
        b"{",
        b"[]",
        b'{"epoch": "x", "sha256": "x", "bytes": 1}',
        b'{"epoch": 1, "sha256": 5, "bytes": 1}',
        b"[" * 100_000,
    ],
)
def test_checkpoint_with_invalid_sidecar_is_skipped(host, facts):
    usable = host.keep(host.first, 3)
    host.keep(host.first, 9).with_suffix(".json").write_bytes(facts)
    assert host.found().path.samefile(usable)


@pytest.mark.parametrize("which", [".pt", ".json"])
@pytest.mark.parametrize(
    "how", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)], ids=["pipe", "folder", "link"]
)
def test_checkpoint_that_is_not_a_regular_file_is_skipped(host, which, how):
    usable = host.keep(host.first, 3)
    path = host.keep(host.first, 9).with_suffix(which)
    path.unlink()
    how(path)
    assert host.found().path.samefile(usable)


def large_metadata(path):
    """Write valid metadata that is larger than the read limit."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", "x")
        archive.writestr("archive/run/checkpoint.json", json.dumps({"pad": " " * 2**21, "setup": OTHER.as_json()}))


def large_directory(path):
    """Write valid metadata into an archive with a directory of more than 8 MiB."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/run/checkpoint.json", json.dumps({"setup": OTHER.as_json()}))
        for n in range(200):
            archive.writestr(f"archive/{n}{'x' * 60_000}", "")


def directory_elsewhere(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/run/checkpoint.json", json.dumps({"setup": OTHER.as_json()}))
    content = path.read_bytes()
    path.write_bytes(content[:-22] + b"PK\6\7" + b"\0" * 16 + content[-22:])


def compressed(path):
    """Write metadata that the training does not write like this: a compressed member can grow a thousandfold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/run/checkpoint.json", json.dumps({"setup": OTHER.as_json()}))


def damaged(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/run/checkpoint.json", json.dumps({"setup": OTHER.as_json()}))
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\xff" * 40 + content[100:])


@pytest.mark.parametrize(
    "make",
    [
        large_metadata,
        large_directory,
        directory_elsewhere,
        compressed,
        damaged,
        lambda path: path.write_bytes(b"no archive"),
    ],
)
def test_metadata_of_damaged_or_too_large_archive_is_ignored(host, make):
    path = host.keep(host.first, 9)
    make(path)
    host.note(path, 9)

    found = host.found()

    assert (found.epoch, found.setup, found.decision) == (9, None, Resume())


@pytest.mark.parametrize("facts", [[], "x", {}, {"setup": "x"}, {"setup": {}}, {"best_epoch": "x"}, {"complete": "no"}])
def test_invalid_metadata_is_ignored(host, facts):
    host.write(host.first, 9, facts)
    assert host.found().epoch == 9
    assert isinstance(host.found().best_epoch, int)
