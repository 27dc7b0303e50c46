"""The contract of every object store: names, content, listings and errors."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

import pytest
from stored_objects import fetch, ref_to

from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, ObjectMissing, Unavailable
from trainer.core.results import Artifact, artifacts_in, with_fresh_urls
from trainer.core.stop import StopSignal
from trainer.storage.supabase import SupabaseObjectStore

MIB = 1024 * 1024
ODD_NAMES = (
    "with space.jpg", "a&b+c.jpg", "semi;colon,comma.txt", "it's (1) @home!.png", "a:b=c?d.jpg", "star*.txt",
    "lr=0.01.png", "UPPER.jpg", "upper.jpg", "trailing ", "..hidden", "x" * 240 + ".jpg", "a.b/c.d/e",
)  # fmt: skip
ODD_FILE_NAMES = (
    "naïve.jpg",
    "画像.png",
    "100%.txt",
    'a#b[c]~\\"<d>|$^{e}`\t.jpg',
    "a=41.jpg",
    "plain.jpg",
    "\udcff",
    "=FF",
)


@pytest.mark.parametrize("size", [0, 1, 50_000, 6 * MIB, 6 * MIB + 1, 7 * MIB])
def test_uploaded_content_is_downloaded_unchanged(store, tmp_path, size):
    content = os.urandom(size)
    source = tmp_path / "source.bin"
    source.write_bytes(content)
    ref = ObjectRef(bucket="data", key="runs/1/best.pt")
    sent: list[int] = []
    stored = store.upload(source, ref, StopSignal(), on_bytes=sent.append)
    got: list[int] = []
    info = store.download(ref, tmp_path / "new" / "folder" / "back", StopSignal(), on_bytes=got.append)
    assert (tmp_path / "new/folder/back").read_bytes() == content
    assert (stored.bytes, info.bytes, sum(sent), sum(got)) == (size, size, size, size)
    assert info == store.stat(ref)
    assert list((tmp_path / "new/folder").iterdir()) == [tmp_path / "new/folder/back"]


def test_upload_replaces_object(store, put, tmp_path):
    ref = put("a.txt", b"one")
    first = store.stat(ref)
    put("a.txt", b"two")
    assert fetch(store, ref, tmp_path / "a") == b"two"
    assert store.stat(ref).etag != first.etag


def test_repeated_upload_keeps_content(store, put, tmp_path):
    put("a.txt", b"same")
    ref = put("a.txt", b"same")
    assert fetch(store, ref, tmp_path / "a") == b"same"
    assert [info.ref.key for info in store.list(ObjectRef(bucket="data", key=""))] == ["a.txt"]


def test_download_replaces_file(store, put, tmp_path):
    (tmp_path / "a").write_bytes(b"something old and longer")
    assert fetch(store, put("a.txt", b"new"), tmp_path / "a") == b"new"


def test_keys_with_special_characters_are_stored_unchanged(store, put, tmp_path):
    for index, name in enumerate(ODD_NAMES):
        assert fetch(store, put(f"odd/{name}", name.encode()), tmp_path / str(index)) == name.encode()
    assert {info.ref.key for info in store.list(ObjectRef(bucket="data", key="odd"))} == {
        f"odd/{name}" for name in ODD_NAMES
    }


@pytest.mark.parametrize("name", ODD_FILE_NAMES)
def test_key_of_every_file_name_can_be_stored(store, put, tmp_path, name):
    key = store.key(f"runs/{name}")
    key.encode()  # a key is valid text, so that a row can contain it
    assert fetch(store, put(key, b"x"), tmp_path / "x") == b"x"
    assert [info.ref.key for info in store.list(ObjectRef(bucket="data", key="runs"))] == [key]


def test_keys_of_different_names_differ(store):
    names = [*ODD_NAMES, *ODD_FILE_NAMES]
    assert len({store.key(name) for name in names}) == len(names)


def test_returned_references_name_their_store(store, put, tmp_path):
    ref = put("a", b"a")
    assert ref.store == ""
    stored = store.upload(tmp_path / "source", ref, StopSignal())
    assert stored.ref == store.stat(ref).ref == next(store.list(ref_to(""))).ref
    assert stored.ref == replace(ref, store=store.name)
    assert store.stat(stored.ref) == store.stat(ref)


def test_reference_into_another_store_is_rejected(store, put, tmp_path):
    elsewhere = replace(put("a", b"a"), store="elsewhere")
    for call in (
        lambda: list(store.list(elsewhere)),
        lambda: store.stat(elsewhere),
        lambda: store.download(elsewhere, tmp_path / "out", StopSignal()),
        lambda: store.upload(tmp_path / "source", elsewhere, StopSignal()),
        lambda: store.delete(elsewhere),
        lambda: store.url(elsewhere),
    ):
        with pytest.raises(BadRequest, match="'elsewhere'"):
            call()
    assert store.stat(ref_to("a")).bytes == 1


def test_expired_urls_of_artifacts_are_replaced(store, put, tmp_path):
    ref = put("runs/1/best.pt", b"best")
    stored = store.upload(tmp_path / "source", ref, StopSignal())
    old = replace(Artifact.of("best.pt", stored, "ab"), url="https://signed.and/expired")
    row = {"artifacts": [asdict(old), {"name": "gone", "path": "runs/1/gone"}, {"name": "best.pt", "path": ref.key}]}

    row["artifacts"][1:1] = [
        {"name": "elsewhere", "path": "a", "store": "of another service"},
        {"name": "invalid", "path": "../a"},
    ]

    fresh = with_fresh_urls(artifacts_in(json.loads(json.dumps(row))), store, "data")

    assert fresh[0].name == "best.pt"
    assert not {"elsewhere", "invalid"} & {artifact.name for artifact in fresh}
    assert fresh[0] == replace(old, url=fresh[0].url)
    assert fresh[0].url.startswith(("file://", "http://"))
    assert fresh[-1].url.split("?")[0] == fresh[0].url.split("?")[0]


@pytest.mark.parametrize("key", ["", "..", "../data/a.txt", "a/../../other/x", "/etc/passwd", "a//b", "./a", "a/"])
def test_invalid_key_is_rejected(store, put, tmp_path, key):
    put("a.txt", b"a")
    ref = ObjectRef(bucket="data", key=key)
    for call in (
        lambda: store.stat(ref),
        lambda: store.download(ref, tmp_path / "out", StopSignal()),
        lambda: store.upload(tmp_path / "source", ref, StopSignal()),
    ):
        with pytest.raises(BadRequest):
            call()
    assert not (tmp_path / "out").exists()
    assert [info.ref.key for info in store.list(ObjectRef(bucket="data", key=""))] == ["a.txt"]


def test_listing_is_complete_and_recursive(store, put):
    many = 2300 if isinstance(store, SupabaseObjectStore) else 300  # a listing of more than two pages
    keys = {f"set/images/{'train' if n % 2 else 'val/deep'}/{n:04}.jpg" for n in range(many)}
    for key in keys:
        put(key, b"12345")
    put("set-other/a.jpg", b"1")
    put("set/.emptyFolderPlaceholder", b"")
    found = list(store.list(ObjectRef(bucket="data", key="set")))
    assert len(found) == many
    assert {info.ref.key for info in found} == keys
    assert {info.bytes for info in found} == {5}
    assert found[7] == store.stat(found[7].ref)


@pytest.mark.parametrize("prefix", ["set", "set/", "/set", "/set/"])
def test_slashes_around_prefix_are_ignored(store, put, prefix):
    for key in ("set/a", "set/b/c", "settings/a", "other"):
        put(key, b"1")
    assert sorted(info.ref.key for info in store.list(ObjectRef(bucket="data", key=prefix))) == ["set/a", "set/b/c"]


def test_listing_is_empty_for_unused_prefix_and_fails_for_missing_bucket(store, put):
    put("set/a", b"1")
    assert list(store.list(ObjectRef(bucket="data", key="no/such/folder"))) == []
    assert list(store.list(ObjectRef(bucket="data", key="se"))) == []
    assert list(store.list(ObjectRef(bucket="data", key="set/a"))) == []
    with pytest.raises(ObjectMissing, match=r"bucket 'nowhere'.*does not exist"):
        list(store.list(ObjectRef(bucket="nowhere", key="")))


@pytest.mark.parametrize("ref", [ObjectRef(bucket="data", key="a/none.jpg"), ObjectRef(bucket="data", key="set")])
def test_error_names_missing_object(store, put, tmp_path, ref):
    put("set/a", b"1")
    for call in (lambda: store.stat(ref), lambda: store.download(ref, tmp_path / "out", StopSignal())):
        with pytest.raises(ObjectMissing, match=rf"'{ref.key}'.*'data'"):
            call()
    assert not (tmp_path / "out").exists()


def test_error_names_missing_bucket(store, tmp_path):
    with pytest.raises(ObjectMissing, match="'nowhere'"):
        store.download(ObjectRef(bucket="nowhere", key="a"), tmp_path / "out", StopSignal())


def test_download_rejects_object_with_unexpected_size_or_etag(store, put, tmp_path):
    ref = put("a.txt", b"one")
    expected = store.stat(ref)
    put("a.txt", b"two")
    for wrong in (expected, replace(store.stat(ref), bytes=4), replace(store.stat(ref), etag="0" * 32)):
        with pytest.raises(Unavailable, match=r"'a\.txt'"):
            store.download(ref, tmp_path / "out" / "a", StopSignal(), expected=wrong)
    assert list((tmp_path / "out").glob("*")) == []
    store.download(ref, tmp_path / "out" / "a", StopSignal(), expected=store.stat(ref))
    assert (tmp_path / "out/a").read_bytes() == b"two"
