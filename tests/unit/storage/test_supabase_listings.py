"""Listings of the Supabase store with faults of the server and of the network."""

from __future__ import annotations

import json

import pytest

from tests.unit.storage.files_and_objects import (
    fill,
    listed,
)
from trainer.core.dataset import ObjectRef
from trainer.core.errors import ObjectMissing, Unavailable


@pytest.mark.parametrize("v2", [True, False])
def test_listing_is_complete_with_both_api_versions(server, store, v2):
    server.v2 = v2
    keys = fill(server, 2100)
    server.put("data", "set/.emptyFolderPlaceholder", b"")
    found = list(store.list(ObjectRef(bucket="data", key="set")))
    assert (len(found), {info.ref.key for info in found}) == (2100, keys)
    assert found[7] == store.stat(found[7].ref)
    assert ("POST /object/list/data" in server.requests) is not v2


@pytest.mark.parametrize("size", [999, 1000, 1001, 2000])
@pytest.mark.parametrize("v2", [True, False])
def test_listing_is_complete_at_page_boundaries(server, store, size, v2):
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
def test_permanently_failing_page_raises_unavailable(server, store, v2):
    server.v2 = v2
    fill(server, 2200)
    listing = store.list(ObjectRef(bucket="data", key="set"))
    next(listing)
    server.fault("status", on="POST /object/list", status=502, times=99)
    with pytest.raises(Unavailable, match="502"):
        list(listing)


def test_invalid_page_raises_unavailable(server, store):
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


def test_size_that_is_missing_in_listing_is_requested(server, store):
    server.put("data", "set/a", b"12345")
    entry = {"name": "set/a", "id": "1", "metadata": None}
    body = json.dumps({"hasNext": False, "objects": [entry]}).encode()
    server.fault("status", on="list-v2", status=200, body=body)
    assert [info.bytes for info in store.list(ObjectRef(bucket="data", key="set"))] == [5]


def test_anonymous_key_gets_missing_bucket_error_instead_of_empty_list(server, make_store):
    fill(server, 3)
    with pytest.raises(ObjectMissing, match="this key cannot access it"):
        listed(make_store("anon-key"))
