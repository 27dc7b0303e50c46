"""The Supabase store with faults of the server and of the network."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from tests.storage_server import StorageServer
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, MachineFailed, Misconfigured, ObjectMissing, Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.remote.storage_api import HttpTimes, StorageApi
from trainer.storage.supabase import SupabaseObjectStore

MIB = 1024 * 1024
CHUNK = 6 * MIB
QUICK = RetryPolicy(tries=3, first_wait=0.01, total_seconds=20)
REF = ObjectRef(bucket="data", key="runs/1/best.pt")
DOWNLOAD = "GET /object/data"


@pytest.fixture
def server():
    with StorageServer({"data": False, "open": True}, tus_host="http://storage.internal:5000") as server:
        yield server


@pytest.fixture
def make_store(server, tmp_path):
    """Return another adapter, as another process would create it."""
    apis: list[StorageApi] = []

    def make(key: str = "service-key", url: str = "", times: HttpTimes | None = None, **options) -> SupabaseObjectStore:
        apis.append(StorageApi(url or server.url, key, times=times))
        options = {"notes": tmp_path / "notes", "stop": StopSignal(), "policy": QUICK} | options
        return SupabaseObjectStore(apis[-1], **options)

    yield make
    for api in apis:
        api.close()


@pytest.fixture
def store(make_store):
    return make_store()


def source_file(tmp_path: Path, size: int) -> tuple[Path, bytes]:
    path, content = tmp_path / "best.pt", os.urandom(size)
    path.write_bytes(content)
    return path, content


def fetched(store: SupabaseObjectStore, tmp_path: Path, **options) -> bytes:
    store.download(REF, tmp_path / "out" / "best.pt", StopSignal(), **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["best.pt"]
    return (tmp_path / "out/best.pt").read_bytes()


def in_another_process(server: StorageServer, tmp_path: Path, statements: str) -> subprocess.Popen[str]:
    script = f"""
import resource
from pathlib import Path
from trainer.core.dataset import ObjectRef
from trainer.core.stop import StopSignal
from trainer.remote.storage_api import StorageApi
from trainer.storage.supabase import SupabaseObjectStore
folder, ref = Path({str(tmp_path)!r}), ObjectRef(bucket={REF.bucket!r}, key={REF.key!r})
store = SupabaseObjectStore(StorageApi({server.url!r}, "service-key"), notes=folder / "notes", stop=StopSignal())
{statements}
"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def kill_when(condition, server: StorageServer, tmp_path: Path, statement: str) -> None:
    """Run `statement` with its own store in another process, and kill the process once `condition` holds."""
    with in_another_process(server, tmp_path, statement) as process:
        deadline = time.monotonic() + 20
        while not condition():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").glob("*"))


# ── listings ──


def fill(server: StorageServer, count: int) -> set[str]:
    keys = {f"set/{'images' if n % 2 else 'labels/deep'}/{n:05}.txt" for n in range(count)}
    server.put("data", "one", b"12345")
    server.objects["data"] |= dict.fromkeys(keys, server.objects["data"].pop("one"))
    return keys


def listed(store: SupabaseObjectStore, prefix: str = "set", bucket: str = "data") -> list[str]:
    return [info.ref.key for info in store.list(ObjectRef(bucket=bucket, key=prefix))]


@pytest.mark.parametrize("v2", [True, False])
def test_both_kinds_of_listing_are_complete(server, store, v2):
    server.v2 = v2
    keys = fill(server, 2100)
    server.put("data", "set/.emptyFolderPlaceholder", b"")
    found = list(store.list(ObjectRef(bucket="data", key="set")))
    assert (len(found), {info.ref.key for info in found}) == (2100, keys)
    assert found[7] == store.stat(found[7].ref)
    assert ("POST /object/list/data" in server.requests) is not v2


@pytest.mark.parametrize("size", [999, 1000, 1001, 2000])
@pytest.mark.parametrize("v2", [True, False])
def test_listing_is_complete_at_every_edge_of_page(server, store, size, v2):
    server.v2 = v2
    server.put("data", "flat/0", b"")
    server.objects["data"] |= {f"flat/{n}": server.objects["data"]["flat/0"] for n in range(size)}
    assert len(set(listed(store, "flat"))) == size


@pytest.mark.parametrize(("kind", "details"), [
    ("status", {"status": 500}), ("status", {"status": 429}), ("portal", {}), ("lost", {}), ("cut", {"after": 100}),
])  # fmt: skip
def test_failed_page_is_requested_again(server, store, kind, details):
    fill(server, 1500)
    server.fault(kind, on="list-v2", **details)
    assert len(listed(store)) == 1500


@pytest.mark.parametrize("v2", [True, False])
def test_page_that_keeps_failing_is_an_error(server, store, v2):
    server.v2 = v2
    fill(server, 2200)
    listing = store.list(ObjectRef(bucket="data", key="set"))
    next(listing)
    server.fault("status", on="POST /object/list", status=502, times=99)
    with pytest.raises(Unavailable, match="502"):
        list(listing)


def test_listing_without_cursor_is_an_error(server, store):
    fill(server, 3)
    for page in (
        {"hasNext": True, "objects": []},
        {"hasNext": True, "objects": [], "nextCursor": "again"},
        [],
        {"objects": []},
    ):
        server.fault("status", on="list-v2", status=200, times=9, body=json.dumps(page).encode())
        with pytest.raises(Unavailable):
            listed(store)
        server.faults.clear()


def test_object_listed_without_size_is_requested(server, store):
    server.put("data", "set/a", b"12345")
    entry = {"name": "set/a", "id": "1", "metadata": None}
    body = json.dumps({"hasNext": False, "objects": [entry]}).encode()
    server.fault("status", on="list-v2", status=200, body=body)
    assert [info.bytes for info in store.list(ObjectRef(bucket="data", key="set"))] == [5]


def test_anonymous_key_gets_missing_bucket_instead_of_empty_list(server, make_store):
    fill(server, 3)
    with pytest.raises(ObjectMissing, match="this key may not see it"):
        listed(make_store("anon-key"))


# ── downloads ──


@pytest.mark.parametrize("kind", ["corrupt", "truncate", "portal", "cut", "lost", "status"])
@pytest.mark.parametrize("size", [50_000, 9 * MIB])
def test_download_recovers_from_one_fault(server, store, tmp_path, kind, size):
    content = os.urandom(size)
    server.put(REF.bucket, REF.key, content)
    server.fault(kind, on=DOWNLOAD, after=size // 2)
    told: list[int] = []
    assert fetched(store, tmp_path, expected=store.stat(REF), on_bytes=told.append) == content
    assert sum(told) == size


@pytest.mark.parametrize("kind", ["corrupt", "truncate", "portal", "status", "etag"])
def test_failing_download_publishes_nothing(server, store, tmp_path, kind):
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


def test_download_with_progress_survives_any_number_of_interruptions(server, store, tmp_path):
    content = os.urandom(4_000_000)
    server.put(REF.bucket, REF.key, content)
    server.fault("cut", on=DOWNLOAD, after=100_000, times=30)
    assert fetched(store, tmp_path) == content
    assert server.sent < 4_100_000


def test_large_download_is_resumed_by_another_process(server, make_store, tmp_path):
    content = os.urandom(20 * MIB)
    server.put(REF.bucket, REF.key, content)
    stop, told = StopSignal(), []

    def on_bytes(moved: int) -> None:
        told.append(moved)
        if sum(told) > 12 * MIB:
            stop.set(StopReason.SHUTDOWN)

    with pytest.raises(Stopped):
        make_store().download(REF, tmp_path / "out" / "best.pt", stop, on_bytes=on_bytes)
    assert left(tmp_path) == ["best.pt.part", "best.pt.part.json"]
    kept = (tmp_path / "out/best.pt.part").stat().st_size
    assert kept > 12 * MIB
    before = server.settled()
    told = []
    assert fetched(make_store(), tmp_path, on_bytes=told.append) == content
    assert server.sent - before == len(content) - kept
    assert sum(told) == len(content)


def test_complete_but_unpublished_download_is_published(server, store, tmp_path):
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
def test_damaged_note_restarts_download(server, store, tmp_path, note):
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


def test_object_replaced_during_download_is_never_mixed(server, store, tmp_path):
    server.put(REF.bucket, REF.key, b"a" * 2_000_000)
    server.fault("cut", on=DOWNLOAD, after=1_000_000)
    replaced: list[int] = []

    def replace_once(moved: int) -> None:
        if not replaced:
            replaced.append(moved)
            server.put(REF.bucket, REF.key, b"b" * 2_000_000)

    assert fetched(store, tmp_path, on_bytes=replace_once) == b"b" * 2_000_000


def test_replaced_object_without_checksum_is_never_mixed(server, store, tmp_path):
    def put(letter: bytes) -> None:
        server.put(REF.bucket, REF.key, letter * 2_000_000)
        stored = server.objects["data"][REF.key]
        server.objects["data"][REF.key] = replace(stored, md5=stored.md5 + "-2")

    put(b"a")
    server.fault("cut", on=DOWNLOAD, after=1_000_000)
    once = iter([b"b"])
    assert fetched(store, tmp_path, on_bytes=lambda _: [put(letter) for letter in once]) == b"b" * 2_000_000


def test_object_deleted_during_download_is_missing(server, store, tmp_path):
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


def test_unsynced_bytes_without_checksum_are_dropped(server, store, tmp_path):
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
    kept, before = (tmp_path / "out/best.pt.part").stat().st_size, server.settled()
    assert kept > 4 * MIB
    assert fetched(store, tmp_path) == content
    assert server.sent - before == len(content) - kept


def test_full_disk_names_file_and_leaves_no_file(server, store, tmp_path):
    server.put(REF.bucket, REF.key, os.urandom(9 * MIB))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(MachineFailed, match=r"out/best\.pt"):
            fetched(store, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(tmp_path) == []


@pytest.mark.parametrize("fault", [{"kind": "delay", "seconds": 30}, {"kind": "slow", "rate": 10.0}])
def test_stop_ends_wait_for_silent_server(server, store, tmp_path, fault):
    server.put(REF.bucket, REF.key, b"x" * 1000)
    server.fault(**fault, on=DOWNLOAD)
    stop = StopSignal()
    timer = threading.Timer(0.3, stop.set, [StopReason.CANCELED])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        store.download(REF, tmp_path / "out" / "best.pt", stop)
    assert time.monotonic() - began < 15
    timer.join()


def test_stop_ends_wait_between_two_tries(server, make_store, tmp_path):
    store = make_store(policy=RetryPolicy(tries=9, first_wait=60, longest_wait=60, total_seconds=600))
    server.fault("status", status=429, headers={"Retry-After": "50"}, times=99)
    stop = StopSignal()
    timer = threading.Timer(0.2, stop.set, [StopReason.CANCELED])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        store.download(REF, tmp_path / "out" / "best.pt", stop)
    assert time.monotonic() - began < 15
    timer.join()


def test_silent_server_times_out_after_read_limit(server, make_store, tmp_path):
    store = make_store(times=HttpTimes(read=0.3), policy=RetryPolicy(tries=2, first_wait=0.01))
    server.put(REF.bucket, REF.key, b"x")
    server.fault("delay", seconds=30, times=9, on=DOWNLOAD)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="ReadTimeout"):
        fetched(store, tmp_path)
    assert time.monotonic() - began < 15


def test_slow_answer_times_out_after_total_limit(server, make_store):
    store = make_store(times=HttpTimes(total=0.3), policy=RetryPolicy(tries=1))
    fill(server, 20)
    server.fault("slow", rate=100.0, on="list-v2")
    with pytest.raises(Unavailable, match="ReadTimeout"):
        listed(store)


def test_429_waits_as_long_as_server_asks(server, make_store, tmp_path):
    server.put(REF.bucket, REF.key, b"x")
    server.fault("status", status=429, headers={"Retry-After": "1"}, on=DOWNLOAD)
    began = time.monotonic()
    assert fetched(make_store(), tmp_path) == b"x"
    assert time.monotonic() - began >= 1


# ── uploads ──


@pytest.mark.parametrize(("kind", "on"), [
    ("cut_request", "POST /object/data"), ("lost", "POST /object/data"), ("status", "POST /object/data"),
    ("status", "POST /object/sign"), ("portal", "GET /bucket"),
])  # fmt: skip
def test_small_upload_recovers_from_one_fault(server, store, tmp_path, kind, on):
    path, content = source_file(tmp_path, 3 * MIB)
    server.fault(kind, on=on, after=MIB)
    told: list[int] = []
    assert store.upload(path, REF, StopSignal(), on_bytes=told.append).bytes == len(content)
    assert server.get("data", REF.key) == content
    assert sum(told) == len(content)


@pytest.mark.parametrize(("kind", "on", "again"), [
    ("cut_request", "PATCH", 0), ("lost", "PATCH", 0), ("status", "PATCH", CHUNK), ("status", "POST /upload", 0),
    ("lost", "POST /upload", 0),
])  # fmt: skip
def test_large_upload_sends_at_most_one_chunk_again(server, store, tmp_path, kind, on, again):
    path, content = source_file(tmp_path, 20 * MIB)
    server.fault(kind, on=on, after=2 * MIB)
    told: list[int] = []
    store.upload(path, REF, StopSignal(), on_bytes=told.append)
    assert server.get("data", REF.key) == content
    assert sum(told) == len(content)
    assert server.received <= len(content) + again
    assert list((tmp_path / "notes").iterdir()) == []


def test_large_upload_is_resumed_by_another_process(server, make_store, tmp_path):
    path, content = source_file(tmp_path, 30 * MIB)
    stop, told = StopSignal(), []

    def on_bytes(moved: int) -> None:
        told.append(moved)
        if sum(told) > 20 * MIB:
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
    told: list[int] = []

    def on_bytes(moved: int) -> None:
        told.append(moved)
        if sum(told) == 2 * CHUNK:
            server.fault("lost", on="PATCH")  # the next chunk, which is the last one

    store.upload(path, REF, StopSignal(), on_bytes=on_bytes)
    assert server.faults[0].times == 0
    assert server.get("data", REF.key) == content
    assert server.received == len(content)


def test_discarded_upload_starts_again(server, store, tmp_path):
    path, content = source_file(tmp_path, 13 * MIB)
    stop = StopSignal()
    with pytest.raises(Stopped):
        store.upload(path, REF, stop, on_bytes=lambda _: stop.set(StopReason.SHUTDOWN))
    server.uploads.clear()
    store.upload(path, REF, StopSignal())
    assert server.get("data", REF.key) == content


def test_upload_discarded_midway_starts_again(server, store, tmp_path):
    path, content = source_file(tmp_path, 20 * MIB)
    forgotten: list[int] = []

    def forget(moved: int) -> None:
        forgotten.append(moved)
        if sum(forgotten) > 8 * MIB and "done" not in server.requests:
            server.requests.append("done")
            server.uploads.clear()

    store.upload(path, REF, StopSignal(), on_bytes=forget)
    assert server.get("data", REF.key) == content


def test_another_file_at_same_path_is_not_appended_to_first(server, store, tmp_path):
    path, _ = source_file(tmp_path, 13 * MIB)
    stop = StopSignal()
    with pytest.raises(Stopped):
        store.upload(path, REF, stop, on_bytes=lambda _: stop.set(StopReason.SHUTDOWN))
    path, content = source_file(tmp_path, 13 * MIB)
    store.upload(path, REF, StopSignal())
    assert server.get("data", REF.key) == content


def test_upload_with_progress_survives_any_number_of_interruptions(server, store, tmp_path):
    path, content = source_file(tmp_path, 13 * MIB)
    server.fault("cut_request", on="PATCH", after=MIB, times=12)
    store.upload(path, REF, StopSignal())
    assert server.get("data", REF.key) == content
    assert server.received == len(content)


def test_full_disk_without_note_does_not_fail_upload(server, make_store, tmp_path):
    """The folder is created when it is needed, not at the start."""
    (tmp_path / "file").touch()
    store = make_store(notes=tmp_path / "file" / "notes")
    store.tidy()
    path, content = source_file(tmp_path, 13 * MIB)
    server.fault("cut_request", on="PATCH", after=MIB, times=2)

    store.upload(path, REF, StopSignal())

    assert server.get("data", REF.key) == content
    assert server.received == len(content), "it went on where it was cut"


def test_old_notes_are_deleted(make_store, tmp_path):
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


@pytest.mark.parametrize("size", [3 * MIB, 8 * MIB])
def test_upload_over_limit_says_how_large_and_what_to_do(server, store, tmp_path, size):
    path, _ = source_file(tmp_path, size)
    server.limit = 2 * MIB
    with pytest.raises(Misconfigured, match=rf"'runs/1/best\.pt' \({size / 1e6:.1f} MB\).*project"):
        store.upload(path, REF, StopSignal())


def test_limit_of_bucket_is_named(server, store, tmp_path):
    path, _ = source_file(tmp_path, 3 * MIB)
    server.buckets["data"].file_size_limit = 2 * MIB
    with pytest.raises(Misconfigured, match=r"the bucket's limit is 2\.1 MB"):
        store.upload(path, REF, StopSignal())


@pytest.mark.parametrize("size", [10, 7 * MIB])
@pytest.mark.parametrize(("setup", "error", "words"), [
    ("bucket", Misconfigured, "bucket 'data' does not exist: create it"),
    ("mime", Misconfigured, "allowed MIME types"),
    ("anon", Misconfigured, "check the key"),
    ("name", BadRequest, "storage accepts no object called"),
])  # fmt: skip
def test_rejected_upload_says_what_to_fix(server, make_store, tmp_path, size, setup, error, words):
    path, _ = source_file(tmp_path, size)
    ref, key = REF, "service-key"
    match setup:
        case "bucket":
            server.buckets.pop("data")
        case "mime":
            server.buckets["data"].mime_types = ["image/png"]
        case "anon":
            key = "anon-key"
        case "name":
            ref = ObjectRef(bucket="data", key="naïve#.pt")
    with pytest.raises(error, match=words):
        make_store(key).upload(path, ref, StopSignal())


@pytest.mark.parametrize(("name", "mime"), [
    ("best.pt", "application/octet-stream"), ("results.csv", "text/csv"), ("a.PNG", "image/png"), ("l.jpg", "image/jpeg"),
    ("manifest.json", "application/json"), ("args.yaml", "application/yaml"), ("train.log", "text/plain"),
    ("best.onnx", "application/octet-stream"), ("no-suffix", "application/octet-stream"),
])  # fmt: skip
def test_every_kind_of_artifact_has_its_content_type(server, store, tmp_path, name, mime):
    (tmp_path / name).write_bytes(b"1")
    store.upload(tmp_path / name, ObjectRef(bucket="data", key=name), StopSignal())
    assert server.objects["data"][name].mime == mime


def test_content_type_that_was_asked_for_wins_on_both_routes(server, store, tmp_path):
    for size in (10, 7 * MIB):
        path, _ = source_file(tmp_path, size)
        store.upload(path, REF, StopSignal(), content_type="image/png")
        assert server.objects["data"][REF.key].mime == "image/png"


def test_memory_does_not_grow_with_file(server, tmp_path):
    source_file(tmp_path, 96 * MIB)
    (tmp_path / "small").write_bytes(bytes(13 * MIB))
    statements = """
def peak_after(name):
    store.upload(folder / name, ref, StopSignal())
    store.download(ref, folder / "back", StopSignal())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(-peak_after("small") + peak_after("best.pt"))
"""
    with in_another_process(server, tmp_path, statements) as process:
        assert process.stdout
        grown = int(process.stdout.read())
    assert (tmp_path / "back").read_bytes() == (tmp_path / "best.pt").read_bytes()
    assert grown < 10  # MiB


def test_stop_ends_wait_for_address_of_upload(server, make_store, tmp_path):
    path, _ = source_file(tmp_path, 10)
    store = make_store(policy=RetryPolicy(tries=9, first_wait=60, longest_wait=60, total_seconds=600))
    server.fault("status", on="/object/sign", times=99, status=503, headers={"Retry-After": "50"})
    stop = StopSignal()
    timer = threading.Timer(0.3, stop.set, [StopReason.CANCELED])
    timer.start()
    with pytest.raises(Stopped):
        store.upload(path, REF, stop)
    timer.join()


# ── addresses ──


@pytest.mark.parametrize("key", ["a.txt", "a b&c+d?e=f;g,h'(i)@j:k!.txt", "100/x/ "])
def test_url_works_for_every_bucket_and_name(server, store, tmp_path, key):
    (tmp_path / "a").write_bytes(b"hello")
    for bucket, route in (("open", "/object/public/"), ("data", "/object/sign/")):
        stored = store.upload(tmp_path / "a", ObjectRef(bucket=bucket, key=key), StopSignal())
        assert route in stored.url
        assert "//" not in stored.url.removeprefix("http://")
        with urllib.request.urlopen(stored.url) as answer:
            assert answer.read() == b"hello"


def test_signed_url_expires(server, make_store, tmp_path):
    server.put("data", "a", b"1")
    url = make_store(url_seconds=-1).url(ObjectRef(bucket="data", key="a"))
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url)
    refused.value.close()


def test_trailing_slash_in_project_url_is_ignored(server, make_store):
    server.put("open", "a", b"1")
    assert (
        make_store(url=server.url + "/").url(ObjectRef(bucket="open", key="a"))
        == f"{server.url}/storage/v1/object/public/open/a"
    )


def test_bucket_settings_are_requested_once(server, store):
    server.put("open", "a", b"1")
    for _ in range(3):
        store.url(ObjectRef(bucket="open", key="a"))
    assert server.requests == ["GET /bucket/open"]
