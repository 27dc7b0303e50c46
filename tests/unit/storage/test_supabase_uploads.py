"""Uploads to the Supabase store with faults of the server and of the network."""

from __future__ import annotations

import os
import time

import pytest

from tests.unit.storage.files_and_objects import (
    CHUNK,
    MIB,
    REF,
    kill_when,
    source_file,
)
from trainer.core.stop import Stopped, StopReason, StopSignal


@pytest.mark.parametrize(("kind", "on"), [
    ("cut_request", "POST /object/data"), ("lost", "POST /object/data"), ("status", "POST /object/data"),
    ("status", "POST /object/sign"), ("portal", "GET /bucket"),
])  # fmt: skip
def test_small_upload_recovers_from_one_fault(server, store, tmp_path, kind, on):
    path, content = source_file(tmp_path, 3 * MIB)
    server.fault(kind, on=on, after=MIB)
    reported: list[int] = []
    assert store.upload(path, REF, StopSignal(), on_bytes=reported.append).bytes == len(content)
    assert server.get("data", REF.key) == content
    assert sum(reported) == len(content)


@pytest.mark.parametrize(("kind", "on", "again"), [
    ("cut_request", "PATCH", 0), ("lost", "PATCH", 0), ("status", "PATCH", CHUNK), ("status", "POST /upload", 0),
    ("lost", "POST /upload", 0),
])  # fmt: skip
def test_large_upload_sends_at_most_one_chunk_again(server, store, tmp_path, kind, on, again):
    path, content = source_file(tmp_path, 20 * MIB)
    server.fault(kind, on=on, after=2 * MIB)
    reported: list[int] = []
    store.upload(path, REF, StopSignal(), on_bytes=reported.append)
    assert server.get("data", REF.key) == content
    assert sum(reported) == len(content)
    assert server.received <= len(content) + again
    assert list((tmp_path / "notes").iterdir()) == []


def test_large_upload_is_resumed_by_another_process(server, make_store, tmp_path):
    path, content = source_file(tmp_path, 30 * MIB)
    stop, reported = StopSignal(), []

    def on_bytes(moved: int) -> None:
        reported.append(moved)
        if sum(reported) > 20 * MIB:
            stop.set(StopReason.SHUTDOWN)

    with pytest.raises(Stopped):
        make_store().upload(path, REF, stop, on_bytes=on_bytes)
    assert server.objects["data"] == {}
    assert len(list((tmp_path / "notes").iterdir())) == 1
    make_store().upload(path, REF, StopSignal())
    assert server.get("data", REF.key) == content
    assert server.received <= len(content) + CHUNK
    assert len([request for request in server.requests if request.startswith("POST /upload")]) == 1
    assert list((tmp_path / "notes").iterdir()) == []


def test_large_upload_of_killed_process_is_resumed(server, store, tmp_path):
    path, content = source_file(tmp_path, 30 * MIB)
    server.fault("slow", on="PATCH", rate=60e6, times=99)
    kill_when(
        lambda: server.received > 15 * MIB, server, tmp_path, "store.upload(folder / 'best.pt', ref, StopSignal())"
    )
    server.faults.clear()
    store.upload(path, REF, StopSignal())
    assert server.get("data", REF.key) == content
    assert server.received <= len(content) + CHUNK


def test_upload_with_lost_last_response_is_not_repeated(server, store, tmp_path):
    path, content = source_file(tmp_path, 13 * MIB)
    reported: list[int] = []

    def on_bytes(moved: int) -> None:
        reported.append(moved)
        if sum(reported) == 2 * CHUNK:
            server.fault("lost", on="PATCH")  # the next chunk, which is the last one

    store.upload(path, REF, StopSignal(), on_bytes=on_bytes)
    assert server.faults[0].times == 0
    assert server.get("data", REF.key) == content
    assert server.received == len(content)


def test_stopped_upload_discarded_by_server_is_restarted(server, store, tmp_path):
    path, content = source_file(tmp_path, 13 * MIB)
    stop = StopSignal()
    with pytest.raises(Stopped):
        store.upload(path, REF, stop, on_bytes=lambda _: stop.set(StopReason.SHUTDOWN))
    server.uploads.clear()
    store.upload(path, REF, StopSignal())
    assert server.get("data", REF.key) == content


def test_running_upload_discarded_by_server_is_restarted(server, store, tmp_path):
    path, content = source_file(tmp_path, 20 * MIB)
    forgotten: list[int] = []

    def forget(moved: int) -> None:
        forgotten.append(moved)
        if sum(forgotten) > 8 * MIB and "done" not in server.requests:
            server.requests.append("done")
            server.uploads.clear()

    store.upload(path, REF, StopSignal(), on_bytes=forget)
    assert server.get("data", REF.key) == content


def test_new_file_at_same_path_is_not_appended_to_partial_upload(server, store, tmp_path):
    path, _ = source_file(tmp_path, 13 * MIB)
    stop = StopSignal()
    with pytest.raises(Stopped):
        store.upload(path, REF, stop, on_bytes=lambda _: stop.set(StopReason.SHUTDOWN))
    path, content = source_file(tmp_path, 13 * MIB)
    store.upload(path, REF, StopSignal())
    assert server.get("data", REF.key) == content


def test_upload_completes_after_12_interruptions_if_each_try_sends_bytes(server, store, tmp_path):
    path, content = source_file(tmp_path, 13 * MIB)
    server.fault("cut_request", on="PATCH", after=MIB, times=12)
    store.upload(path, REF, StopSignal())
    assert server.get("data", REF.key) == content
    assert server.received == len(content)


def test_upload_succeeds_if_its_note_cannot_be_written(server, make_store, tmp_path):
    """A note is the file with the id of an unfinished upload. Its folder is created with the first note."""
    (tmp_path / "file").touch()
    store = make_store(notes=tmp_path / "file" / "notes")
    store.tidy()
    path, content = source_file(tmp_path, 13 * MIB)
    server.fault("cut_request", on="PATCH", after=MIB, times=2)

    store.upload(path, REF, StopSignal())

    assert server.get("data", REF.key) == content
    assert server.received == len(content), "a byte was sent twice"


def test_old_notes_of_uploads_are_deleted(make_store, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    for name, age in (("old.json", 72), ("new.json", 1)):
        (notes / name).write_text("{}")
        os.utime(notes / name, (time.time() - age * 3600,) * 2)
    (notes / "folder.json").mkdir()
    (notes / "dangling.json").symlink_to("nowhere")
    store = make_store()
    store.tidy()
    assert {path.name for path in notes.iterdir()} == {"new.json", "folder.json", "dangling.json"}
