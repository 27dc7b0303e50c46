"""Invalid answers of the Storage API become errors with a reason, and are not cached."""

from __future__ import annotations

import contextlib

import pytest

from tests.storage_http import PORTAL
from tests.storage_server import StorageServer
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, Misconfigured, ObjectMissing, TrainerError, Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.remote.storage_api import StorageApi
from trainer.storage.resumable import CHUNK
from trainer.storage.supabase import SupabaseObjectStore

REF = ObjectRef(bucket="data", key="runs/1/best.pt")
ODD = {
    "null": b"null",
    "an empty list": b"[]",
    "a list of null": b"[null]",
    "a string": b'"signedURL"',
    "a number": b"1e999",
    "an empty object": b"{}",
    "a login page": PORTAL,
    "nothing": b"",
    "a truncated object": b'{"objects": [{"na',
    "100,000 nested lists": b"[" * 100_000,
    "wrong types": b'{"signedURL": 7, "public": "yes", "size": "1", "etag": 5, "Key": [], "objects": {}, "hasNext": 1}',
    "null fields": b'{"signedURL": null, "public": null, "size": null, "etag": null, "Key": null, "objects": null}',
    "entries that are null": b'{"objects": [null], "hasNext": false}',
    "entries without a name": b'{"objects": [{"id": "1"}], "hasNext": false}',
    "a cursor that is a list": b'{"objects": [], "hasNext": true, "nextCursor": []}',
    "negative and false values": b'{"size": -1, "etag": "x", "public": 0, "signedURL": "?token", "Key": "", "hasNext": null}',
}

REFUSALS = [
    b'{"statusCode": "%s"}' % (b"4" * 5000),
    b'{"statusCode": %s}' % (b"4" * 5000),
    '{"statusCode": "²²²", "error": "٤٠٤"}'.encode(),
    b'{"statusCode": "404", "error": ["NoSuchKey"], "message": {"bucket": null}}',
    b'{"code": [1], "message": [[]]}',
]


@pytest.fixture
def server():
    with StorageServer({"data": False}) as server:
        server.put("data", "runs/1/other.txt", b"other")
        yield server


@pytest.fixture
def store(server, tmp_path):
    api = StorageApi(server.url, "service-key")
    yield SupabaseObjectStore(
        api,
        notes=tmp_path / "notes",
        stop=StopSignal(),
        policy=RetryPolicy(tries=2, first_wait=0.0),
    )
    api.close()


@pytest.fixture
def upload(store, tmp_path):
    def upload(size=5):
        path = tmp_path / "best.pt"
        path.write_bytes(b"x" * size)
        return store.upload(path, REF, StopSignal())

    return upload


CALLS = {
    "sign": ("POST /object/sign/", lambda store, upload: upload()),
    "bucket": ("GET /bucket/", lambda store, upload: upload()),
    "upload": ("POST /object/data", lambda store, upload: upload()),
    "create a large upload": ("POST /upload/resumable", lambda store, upload: upload(CHUNK + 1)),
    "send a large upload": ("PATCH /upload/resumable", lambda store, upload: upload(CHUNK + 1)),
    "list": ("POST /object/list-v2", lambda store, upload: list(store.list(ObjectRef(bucket="data", key="runs")))),
    "stat": ("HEAD /object/data", lambda store, upload: store.stat(ObjectRef(bucket="data", key="runs/1/other.txt"))),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("call", CALLS)
def test_invalid_answer_is_retried_and_raises_unavailable(server, store, upload, call, odd):
    route, ask = CALLS[call]
    server.fault("status", on=route, status=200, body=ODD[odd], times=2)

    with pytest.raises(Unavailable) as raised:
        ask(store, upload)

    assert "storage" in str(raised.value)
    assert ask(store, upload)


@pytest.mark.parametrize("refusal", [*ODD.values(), *REFUSALS])
@pytest.mark.parametrize("call", CALLS)
def test_invalid_rejection_becomes_trainer_error(server, store, upload, call, refusal):
    route, ask = CALLS[call]
    server.fault("status", on=route, status=400, body=refusal, times=2)

    with contextlib.suppress(TrainerError):
        ask(store, upload)

    server.faults.clear()
    assert ask(store, upload)


@pytest.mark.parametrize("odd", sorted(ODD.keys() - {"an empty list"}))
def test_invalid_page_of_older_server_raises_unavailable(server, store, odd):
    server.v2 = False
    server.fault("status", on="POST /object/list/", status=200, body=ODD[odd], times=2)

    with pytest.raises(Unavailable):
        list(store.list(ObjectRef(bucket="data", key="runs")))

    assert [info.ref.key for info in store.list(ObjectRef(bucket="data", key="runs"))] == ["runs/1/other.txt"]


def test_repeated_page_raises_unavailable(server, store):
    server.v2 = False
    page = (
        b"["
        + b",".join(b'{"name": "%d", "id": "x", "metadata": {"size": 1, "eTag": "e"}}' % n for n in range(1000))
        + b"]"
    )
    server.fault("status", on="POST /object/list/", status=200, body=page, times=100)

    with pytest.raises(Unavailable, match="same page"):
        list(store.list(ObjectRef(bucket="data", key="runs")))


@pytest.mark.parametrize("odd", ODD)
def test_invalid_object_description_raises_unavailable(server, store, odd):
    """If HEAD is rejected, the store reads the size from the JSON answer of GET /object/info."""
    ref = ObjectRef(bucket="data", key="runs/1/other.txt")
    server.fault("status", on="HEAD /object/data", status=404, times=2)
    server.fault("status", on="GET /object/info", status=200, body=ODD[odd], times=2)

    with pytest.raises(Unavailable):
        store.stat(ref)

    assert store.stat(ref).bytes == 5


@pytest.mark.parametrize("odd", [name for name, odd in ODD.items() if not odd.endswith(b"}")])
def test_invalid_answer_to_delete_raises_unavailable(server, store, odd):
    server.fault("status", on="DELETE /object", status=200, body=ODD[odd], times=2)

    with pytest.raises(Unavailable):
        store.delete(ObjectRef(bucket="data", key="runs/1/other.txt"))

    store.delete(ObjectRef(bucket="data", key="runs/1/other.txt"))
    assert list(server.objects["data"]) == []


def test_login_page_for_every_route_is_reported_and_stores_nothing(server, store, upload):
    server.fault("portal", on="/", times=1000)

    with pytest.raises(Unavailable, match="login page"):
        upload()
    with pytest.raises(Unavailable, match="did not return the location"):
        upload(CHUNK + 1)

    server.faults.clear()
    assert upload().bytes == 5
    assert server.get("data", REF.key) == b"xxxxx"


def test_login_page_does_not_count_as_upload_to_public_bucket(server, store, upload):
    """A public URL is built without a request. Only the answer to the upload shows that the object was not stored."""
    server.buckets["data"].public = True
    upload()
    server.objects["data"].clear()
    server.fault("portal", on="/", times=1000)

    with pytest.raises(Unavailable, match="login page"):
        upload()


def test_signing_request_is_repeated_after_404(server, store, upload):
    server.fault(
        "status", on="POST /object/sign", status=404, times=1, body=b'{"statusCode":"404","error":"NoSuchKey"}'
    )

    assert "token=" in upload().url
    assert sum("POST /object/data" in request for request in server.requests) == 1


def test_object_missing_right_after_upload_raises_unavailable(server, store, upload):
    server.fault(
        "status", on="POST /object/sign", status=404, times=9, body=b'{"statusCode":"404","error":"NoSuchKey"}'
    )

    with pytest.raises(Unavailable, match="has just been stored"):
        upload()
    with pytest.raises(ObjectMissing):
        store.url(REF)


def test_web_page_with_404_does_not_make_public_bucket_private(server, store, upload):
    """A restarting gateway can answer 404. If the bucket counted as private, the URL of the object would expire."""
    server.buckets["data"].public = True
    server.fault("status", on="GET /bucket/", status=404, times=1)

    with pytest.raises(Misconfigured, match="no Storage API"):
        upload()

    assert "/object/public/" in upload().url


def test_offset_beyond_sent_bytes_is_rejected(server, store, upload):
    """If the store accepted an offset beyond the end, the upload would stop before the object is stored."""
    server.fault("status", on="PATCH /upload", status=204, headers={"Upload-Offset": str(10**12)}, body=b"", times=2)

    with pytest.raises(Unavailable, match="at most"):
        upload(CHUNK + 1)

    assert upload(CHUNK + 1).bytes == len(server.get("data", REF.key))


def test_too_large_upload_raises_misconfigured_if_bucket_cannot_be_read(server, store, upload):
    server.limit = 2
    server.fault("status", on="GET /bucket/", status=400, times=9, body=b'{"statusCode":"404","error":"NoSuchBucket"}')

    with pytest.raises(Misconfigured, match="larger than") as raised:
        upload()

    assert not isinstance(raised.value, BadRequest)
