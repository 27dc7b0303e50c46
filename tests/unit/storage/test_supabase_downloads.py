"""Downloads from the Supabase store with faults of the server and of the network."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace

import pytest

from tests.unit.storage.files_and_objects import (
    DOWNLOAD,
    MIB,
    REF,
    fetched,
    kill_when,
    left,
)
from trainer.core.errors import MachineFailed, ObjectMissing, Unavailable
from trainer.core.stop import Stopped, StopReason, StopSignal


@pytest.mark.parametrize("kind", ["corrupt", "truncate", "portal", "cut", "lost", "status"])
@pytest.mark.parametrize("size", [50_000, 9 * MIB])
def test_download_recovers_from_one_fault(server, store, tmp_path, kind, size):
    content = os.urandom(size)
    server.put(REF.bucket, REF.key, content)
    server.fault(kind, on=DOWNLOAD, after=size // 2)
    reported: list[int] = []
    assert fetched(store, tmp_path, expected=store.stat(REF), on_bytes=reported.append) == content
    assert sum(reported) == size


@pytest.mark.parametrize("kind", ["corrupt", "truncate", "portal", "status", "etag"])
def test_failing_download_leaves_no_file(server, store, tmp_path, kind):
    server.put(REF.bucket, REF.key, os.urandom(50_000))
    expected = store.stat(REF)
    server.fault(kind, on=DOWNLOAD, after=100, times=99)
    with pytest.raises(Unavailable):
        fetched(store, tmp_path, expected=expected)
    assert left(tmp_path) == []


def test_interrupted_download_is_resumed(server, store, tmp_path):
    content = os.urandom(1_000_000)
    server.put(REF.bucket, REF.key, content)
    server.fault("cut", on=DOWNLOAD, after=600_000)
    assert fetched(store, tmp_path) == content
    assert 1_000_000 <= server.sent <= 1_000_000 + 1


def test_download_completes_after_30_interruptions_if_each_try_receives_bytes(server, store, tmp_path):
    content = os.urandom(4_000_000)
    server.put(REF.bucket, REF.key, content)
    server.fault("cut", on=DOWNLOAD, after=100_000, times=30)
    assert fetched(store, tmp_path) == content
    assert server.sent < 4_100_000


def test_large_download_is_resumed_by_another_process(server, make_store, tmp_path):
    content = os.urandom(20 * MIB)
    server.put(REF.bucket, REF.key, content)
    stop, reported = StopSignal(), []

    def on_bytes(moved: int) -> None:
        reported.append(moved)
        if sum(reported) > 12 * MIB:
            stop.set(StopReason.SHUTDOWN)

    with pytest.raises(Stopped):
        make_store().download(REF, tmp_path / "out" / "best.pt", stop, on_bytes=on_bytes)
    assert left(tmp_path) == ["best.pt.part", "best.pt.part.json"]
    kept = (tmp_path / "out/best.pt.part").stat().st_size
    assert kept > 12 * MIB
    before = server.sent_when_idle()
    reported = []
    assert fetched(make_store(), tmp_path, on_bytes=reported.append) == content
    assert server.sent - before == len(content) - kept
    assert sum(reported) == len(content)


def test_part_file_with_complete_content_is_not_downloaded_again(server, store, tmp_path):
    content = os.urandom(9 * MIB)
    server.put(REF.bucket, REF.key, content)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/best.pt.part").write_bytes(content)
    (tmp_path / "out/best.pt.part.json").write_text(
        json.dumps({"etag": store.stat(REF).etag, "bytes": len(content), "safe": 0})
    )
    assert fetched(store, tmp_path) == content
    assert server.sent == 1


@pytest.mark.parametrize("size", [9 * MIB, 7 * MIB, 2 * MIB])
def test_partial_file_of_other_content_is_discarded(server, store, tmp_path, size):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/best.pt.part").write_bytes(b"x" * 5 * MIB)
    (tmp_path / "out/best.pt.part.json").write_text(json.dumps({"etag": "0" * 32, "bytes": 9 * MIB, "safe": 0}))
    content = os.urandom(size)
    server.put(REF.bucket, REF.key, content)
    assert fetched(store, tmp_path) == content


@pytest.mark.parametrize(
    "note",
    [
        "",
        "{}",
        "[]",
        '{"etag": null, "bytes": "x"}',
        '{"etag": "a", "bytes": 10}',
        '{"etag": "a", "bytes": 10, "safe": 5}',
    ],
)
def test_download_restarts_if_part_json_is_damaged(server, store, tmp_path, note):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/best.pt.part").write_bytes(b"x" * 100)
    (tmp_path / "out/best.pt.part.json").write_text(note)
    server.put(REF.bucket, REF.key, b"right")
    assert fetched(store, tmp_path) == b"right"


def test_damaged_partial_file_is_downloaded_again(server, store, tmp_path):
    content = os.urandom(9 * MIB)
    server.put(REF.bucket, REF.key, content)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/best.pt.part").write_bytes(b"x" * MIB)
    (tmp_path / "out/best.pt.part.json").write_text(
        json.dumps({"etag": store.stat(REF).etag, "bytes": len(content), "safe": 0})
    )
    assert fetched(store, tmp_path) == content


def test_download_never_mixes_old_and_new_object(server, store, tmp_path):
    server.put(REF.bucket, REF.key, b"a" * 2_000_000)
    server.fault("cut", on=DOWNLOAD, after=1_000_000)
    replaced: list[int] = []

    def replace_once(moved: int) -> None:
        if not replaced:
            replaced.append(moved)
            server.put(REF.bucket, REF.key, b"b" * 2_000_000)

    assert fetched(store, tmp_path, on_bytes=replace_once) == b"b" * 2_000_000


def test_download_never_mixes_old_and_new_object_without_checksum(server, store, tmp_path):
    def put(letter: bytes) -> None:
        server.put(REF.bucket, REF.key, letter * 2_000_000)
        stored = server.objects["data"][REF.key]
        server.objects["data"][REF.key] = replace(stored, md5=stored.md5 + "-2")

    put(b"a")
    server.fault("cut", on=DOWNLOAD, after=1_000_000)
    once = iter([b"b"])
    assert fetched(store, tmp_path, on_bytes=lambda _: [put(letter) for letter in once]) == b"b" * 2_000_000


def test_object_deleted_during_download_raises_object_missing(server, store, tmp_path):
    server.put(REF.bucket, REF.key, b"a" * 2_000_000)
    server.fault("cut", on=DOWNLOAD, after=1_000_000)
    with pytest.raises(ObjectMissing):
        fetched(store, tmp_path, on_bytes=lambda _: server.objects["data"].clear())
    assert left(tmp_path) == []


def test_etag_that_is_not_a_checksum_is_not_compared(server, store, tmp_path):
    server.put(REF.bucket, REF.key, b"content")
    stored = server.objects["data"][REF.key]
    server.objects["data"][REF.key] = replace(stored, md5=stored.md5 + "-3")
    assert fetched(store, tmp_path, expected=store.stat(REF)) == b"content"


def test_unsynced_bytes_without_checksum_are_discarded(server, store, tmp_path):
    content = os.urandom(9 * MIB)
    server.put(REF.bucket, REF.key, content)
    stored = server.objects["data"][REF.key]
    server.objects["data"][REF.key] = replace(stored, md5="0" * 32 + "-2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/best.pt.part").write_bytes(content[: 2 * MIB] + bytes(MIB))  # zeros, as after a power cut
    (tmp_path / "out/best.pt.part.json").write_text(
        json.dumps({"etag": "0" * 32 + "-2", "bytes": 9 * MIB, "safe": 2 * MIB})
    )
    assert fetched(store, tmp_path) == content
    assert server.sent == 7 * MIB


def test_download_of_killed_process_is_resumed(server, store, tmp_path):
    content = os.urandom(24 * MIB)
    server.put(REF.bucket, REF.key, content)
    server.fault("slow", on=DOWNLOAD, rate=40e6)
    (tmp_path / "out").mkdir()
    kill_when(
        lambda: server.sent > 12 * MIB, server, tmp_path, "store.download(ref, folder / 'out/best.pt', StopSignal())"
    )
    kept, before = (tmp_path / "out/best.pt.part").stat().st_size, server.sent_when_idle()
    assert kept > 4 * MIB
    assert fetched(store, tmp_path) == content
    assert server.sent - before == len(content) - kept


def test_error_of_failed_write_names_file_and_no_file_remains(server, store, tmp_path):
    server.put(REF.bucket, REF.key, os.urandom(9 * MIB))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(MachineFailed, match=r"out/best\.pt"):
            fetched(store, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(tmp_path) == []
