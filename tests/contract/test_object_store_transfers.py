"""The contract of every object store: stopped, concurrent and failed transfers."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from stored_objects import fetch

from trainer.core.dataset import ObjectRef
from trainer.core.errors import MachineFailed, ObjectMissing, Unavailable
from trainer.core.stop import Stopped, StopReason, StopSignal

MIB = 1024 * 1024


def test_stopped_download_leaves_no_file_and_can_be_repeated(store, put, tmp_path):
    content = os.urandom(20 * MIB)
    ref = put("big.zip", content)
    stop = StopSignal()
    with pytest.raises(Stopped) as stopped:
        store.download(ref, tmp_path / "big", stop, on_bytes=lambda _: stop.set(StopReason.CANCELED))
    assert stopped.value.reason is StopReason.CANCELED
    assert not (tmp_path / "big").exists()
    assert fetch(store, ref, tmp_path / "big") == content
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "big"))] == ["big"]


def test_stopped_upload_publishes_nothing_and_can_be_repeated(store, tmp_path):
    content = os.urandom(20 * MIB)
    (tmp_path / "best.pt").write_bytes(content)
    ref, stop = ObjectRef(bucket="data", key="best.pt"), StopSignal()
    with pytest.raises(Stopped):
        store.upload(tmp_path / "best.pt", ref, stop, on_bytes=lambda _: stop.set(StopReason.SHUTDOWN))
    assert list(store.list(ObjectRef(bucket="data", key=""))) == []
    store.upload(tmp_path / "best.pt", ref, StopSignal())
    assert fetch(store, ref, tmp_path / "back") == content


def test_stop_before_transfer_transfers_no_content(store, put, tmp_path):
    ref, stop = put("a", b"1"), StopSignal()
    stop.set(StopReason.LOST)
    with pytest.raises(Stopped):
        store.download(ref, tmp_path / "out", stop)
    with pytest.raises(Stopped):
        store.upload(tmp_path / "source", ObjectRef(bucket="data", key="b"), stop)
    assert [info.ref.key for info in store.list(ObjectRef(bucket="data", key=""))] == ["a"]


def test_finish_request_does_not_stop_download(store, put, tmp_path):
    ref, stop = put("a", b"1"), StopSignal()
    stop.set(StopReason.FINISH)
    store.download(ref, tmp_path / "out", stop)
    assert (tmp_path / "out").read_bytes() == b"1"


def test_sixteen_threads_can_use_one_store(store, tmp_path):
    def round_trip(n: int) -> bool:
        content = os.urandom(20_000 + n)
        source, ref = tmp_path / f"in{n}", ObjectRef(bucket="data", key=f"many/{n}")
        source.write_bytes(content)
        store.upload(source, ref, StopSignal())
        return fetch(store, ref, tmp_path / f"out{n}") == content

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(round_trip, range(160)))
    assert len(list(store.list(ObjectRef(bucket="data", key="many")))) == 160


def test_reader_sees_old_or_new_object_but_never_a_mixture(store, put, tmp_path):
    ref = put("model.pt", b"0" * 300_000)
    done = threading.Event()

    def write() -> None:
        for digit in b"123456789":
            put("model.pt", bytes([digit]) * 300_000)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not done.is_set():
            try:
                content = fetch(store, ref, tmp_path / "out")
            except Unavailable:
                continue  # the object was replaced during the download, so the download failed
            assert len(set(content)) == 1
            assert len(content) == 300_000
        writer.result()


def test_delete_is_idempotent(store, put):
    ref = put("set/a", b"1")
    put("set/b", b"1")
    store.delete(ref)
    store.delete(ref)
    store.delete(ObjectRef(bucket="data", key="set"))
    assert [info.ref.key for info in store.list(ObjectRef(bucket="data", key=""))] == ["set/b"]
    with pytest.raises(ObjectMissing):
        store.stat(ref)


def test_missing_source_file_is_machine_failure(store, tmp_path):
    with pytest.raises(MachineFailed, match=r"gone\.pt"):
        store.upload(tmp_path / "gone.pt", ObjectRef(bucket="data", key="gone.pt"), StopSignal())


def test_unwritable_target_is_machine_failure(store, put, tmp_path):
    ref = put("a", b"1")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineFailed, match="file/a"):
        store.download(ref, tmp_path / "file" / "a", StopSignal())
