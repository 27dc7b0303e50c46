"""The local store: bucket names, links, edited objects, failed writes and temporary files."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from trainer.core.dataset import ObjectRef
from trainer.core.errors import MachineFailed, ObjectMissing, Unavailable
from trainer.core.stop import StopSignal
from trainer.storage.files import disk_errors, replacing
from trainer.storage.local import LocalObjectStore

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "buckets"
    (root / "data").mkdir(parents=True)
    return root


@pytest.fixture
def store(root):
    return LocalObjectStore(root)


def ref(key: str, bucket: str = "data") -> ObjectRef:
    return ObjectRef(bucket=bucket, key=key)


def test_upload_creates_its_bucket(store, root, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    stored = store.upload(tmp_path / "a", ref("x/a b.pt", "training-artifacts"), StopSignal())
    assert (root / "training-artifacts/x/a b.pt").read_bytes() == b"1"
    assert stored.url == (root / "training-artifacts/x/a b.pt").as_uri()
    assert stored.url.endswith("/a%20b.pt")


@pytest.mark.parametrize("bucket", ["", ".", "..", "a/b", "/etc", "a\0b"])
def test_invalid_bucket_name_is_rejected(store, bucket):
    with pytest.raises(ObjectMissing, match="name of a bucket"):
        list(store.list(ObjectRef(bucket=bucket, key="")))


def test_prefix_outside_of_bucket_is_rejected(store):
    with pytest.raises(ObjectMissing, match="write the path"):
        list(store.list(ObjectRef(bucket="data", key="../..")))


def test_link_out_of_bucket_is_rejected_by_every_call(store, root, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "data/link").symlink_to(tmp_path / "secret")
    for call in (
        lambda: store.stat(ref("link")),
        lambda: store.download(ref("link"), tmp_path / "out", StopSignal()),
        lambda: store.upload(tmp_path / "secret", ref("link"), StopSignal()),
        lambda: list(store.list(ObjectRef(bucket="data", key=""))),
    ):
        with pytest.raises(ObjectMissing, match="symbolic link"):
            call()
    assert not (tmp_path / "out").exists()


def test_symbolic_link_to_folder_is_rejected(store, root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").write_bytes(b"1")
    (root / "data/images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ObjectMissing, match="symbolic link"):
        list(store.list(ObjectRef(bucket="data", key="")))
    with pytest.raises(ObjectMissing, match="symbolic link"):
        list(store.list(ObjectRef(bucket="data", key="images")))
    with pytest.raises(ObjectMissing, match="symbolic link"):
        store.upload(tmp_path / "elsewhere/a.jpg", ref("images/b.jpg"), StopSignal())


def test_link_inside_bucket_and_linked_bucket_are_accepted(store, root, tmp_path):
    (tmp_path / "disk2").mkdir()
    (tmp_path / "disk2/a").write_bytes(b"1")
    (tmp_path / "disk2/b").symlink_to("a")
    (root / "big").symlink_to(tmp_path / "disk2")
    assert [(info.ref.key, info.bytes) for info in store.list(ObjectRef(bucket="big", key=""))] == [("a", 1), ("b", 1)]


def test_edit_in_place_changes_etag(store, root):
    path = root / "data/a"
    path.write_bytes(b"one")
    before = store.stat(ref("a"))
    path.write_bytes(b"two")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert store.stat(ref("a")).etag != before.etag


def test_edit_during_download_raises_unavailable_and_leaves_no_file(store, root, tmp_path):
    path = root / "data/a"
    path.write_bytes(b"a" * 3 * MIB)

    def edit(_: int) -> None:
        with path.open("ab") as out:
            out.write(b"b")

    with pytest.raises(Unavailable, match="changed"):
        store.download(ref("a"), tmp_path / "new" / "out", StopSignal(), on_bytes=edit)
    assert list((tmp_path / "new").iterdir()) == []


def test_temporary_file_is_not_an_object(store, root):
    (root / "data/.incoming-0123").write_bytes(b"half")
    assert list(store.list(ObjectRef(bucket="data", key=""))) == []


def test_error_of_failed_write_names_file_and_no_partial_file_remains(store, root, tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 4 * MIB)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(MachineFailed, match="data/model"):
            store.upload(tmp_path / "a", ref("model"), StopSignal())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((root / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("code", "name"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk quota is used up")]
)
def test_error_names_full_disk_or_quota_and_file(code, name):
    with (
        pytest.raises(MachineFailed, match=rf"/data/x cannot be read or written: {name}"),
        disk_errors(Path("/data/x")),
    ):
        raise OSError(code, "whatever")


def test_object_key_inside_another_object_is_rejected(store, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    store.upload(tmp_path / "a", ref("x"), StopSignal())
    with pytest.raises(MachineFailed, match="data/x/y"):
        store.upload(tmp_path / "a", ref("x/y"), StopSignal())


def test_failed_replacement_keeps_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(TypeError), replacing(tmp_path / "a", durable=True) as out:
        out.writelines([b"half", "no bytes"])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_temporary_file_of_killed_upload_is_removed_after_a_day(tmp_path):
    store = LocalObjectStore(tmp_path / "storage")
    store.tidy()
    folder = tmp_path / "storage" / "b" / "runs"
    folder.mkdir(parents=True)
    for name in (".incoming-old", ".incoming-young", "model.pt"):
        (folder / name).write_text("x")
    for name in (".incoming-old", "model.pt"):
        os.utime(folder / name, (0, 0))
    (folder / ".incoming-link").symlink_to("model.pt")

    store.tidy()

    assert {path.name for path in folder.iterdir()} == {".incoming-young", ".incoming-link", "model.pt"}
