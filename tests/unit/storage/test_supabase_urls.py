"""URLs of objects in the Supabase store."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from trainer.core.dataset import ObjectRef
from trainer.core.stop import StopSignal


@pytest.mark.parametrize("key", ["a.txt", "a b&c+d?e=f;g,h'(i)@j:k!.txt", "100/x/ "])
def test_url_returns_object_of_public_and_private_bucket(server, store, tmp_path, key):
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
