"""The fake Storage server answers like the real server."""

from __future__ import annotations

import base64
import hashlib

import httpx
import pytest

from tests.storage_server import StorageServer

KEY = {"Authorization": "Bearer service-key"}
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture
def server():
    with StorageServer({"data": False, "open": True}, limit=20_000_000) as server:
        yield server


@pytest.fixture
def client(server):
    with httpx.Client(base_url=f"{server.url}/storage/v1", headers=KEY) as client:
        yield client


def fill(server, count: int) -> None:
    for n in range(count):
        server.put("data", f"set/{n:04}", b"1")


def test_list_v1_returns_100_objects_by_default_and_at_most_1500(server, client):
    fill(server, 1600)
    for limit, count in ((None, 100), (1001, 1001), (2000, 1500), (10000, 1500)):
        body = {"prefix": "set"} | ({"limit": limit} if limit else {})
        assert len(client.post("/object/list/data", json=body).json()) == count
    assert client.post("/object/list/data", json={"prefix": "set", "offset": 1599}).json()[0]["name"] == "1599"


def test_list_v1_has_folders_without_id_and_is_empty_for_missing_prefix(server, client):
    server.put("data", "set/deep/a", b"1")
    entry = {"name": "deep", "id": None, "metadata": None}
    assert client.post("/object/list/data", json={"prefix": "set"}).json() == [entry]
    for bucket, prefix in (("data", "se"), ("data", "/set"), ("nowhere", "")):
        answer = client.post(f"/object/list/{bucket}", json={"prefix": prefix})
        assert (answer.status_code, answer.json()) == (200, [])


def test_list_v2_is_recursive_with_pages_of_at_most_1000(server, client):
    fill(server, 1100)
    server.put("data", "set/deep/a", b"1")
    first = client.post("/object/list-v2/data", json={"prefix": "set/", "limit": 5000}).json()
    rest = client.post("/object/list-v2/data", json={"prefix": "set/", "cursor": first["nextCursor"]}).json()
    assert (len(first["objects"]), first["hasNext"], len(rest["objects"]), rest["hasNext"]) == (1000, True, 101, False)
    assert rest["objects"][-1]["name"] == "set/deep/a"
    assert rest["objects"][-1]["metadata"]["eTag"] == f'"{hashlib.md5(b"1").hexdigest()}"'


@pytest.mark.parametrize(("method", "path", "code"), [
    ("GET", "/object/data/none", "404"), ("GET", "/object/nowhere/a", "404"), ("GET", "/bucket/nowhere", "404"),
    ("POST", "/object/data/a", "409"), ("POST", "/object/data/na%C3%AFve", "400"), ("POST", "/object/data/a%23b", "400"),
    ("GET", "/object/public/data/a", "404"), ("GET", "/object/sign/data/a?token=abc", "400"),
])  # fmt: skip
def test_rejections_are_400_with_real_status_in_body(server, client, method, path, code):
    server.put("data", "a", b"1")
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["statusCode"]) == (400, code)


def test_head_of_missing_object_is_400_without_body(client):
    answer = client.head("/object/data/none")
    assert (answer.status_code, answer.content) == (400, b"")


def test_object_is_replaced_only_by_x_upsert_header_or_put(server, client):
    server.put("data", "a", b"1")
    assert client.post("/object/data/a", content=b"2", headers={"upsert": "true"}).json()["statusCode"] == "409"
    assert client.post("/object/data/a", content=b"2", headers={"x-upsert": "true"}).status_code == 200
    assert client.put("/object/data/a", content=b"3").status_code == 200
    assert server.get("data", "a") == b"3"


@pytest.mark.parametrize(("wanted", "status", "content"), [
    ("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-3", 206, b"789"), ("bytes=0-99", 206, b"0123456789"),
    ("bytes=10-", 416, None), ("bytes=0-1,3-4", 416, None),
])  # fmt: skip
def test_range_request_returns_requested_bytes(server, client, wanted, status, content):
    server.put("data", "a", b"0123456789")
    answer = client.get("/object/data/a", headers={"Range": wanted, "If-Range": '"other"'})
    assert answer.status_code == status
    assert content in (None, answer.content)


def test_request_for_unchanged_object_returns_304_and_etag_is_md5(server, client):
    server.put("data", "a", b"1")
    etag = client.head("/object/data/a").headers["ETag"]
    assert etag == f'"{hashlib.md5(b"1").hexdigest()}"'
    assert client.get("/object/data/a", headers={"If-None-Match": etag}).status_code == 304


def test_limits_of_size_and_mime_type_are_enforced(server, client):
    assert client.post("/object/data/a", content=bytes(20_000_001)).json()["statusCode"] == "413"
    server.buckets["data"].file_size_limit, server.buckets["data"].mime_types = 10, ["image/png"]
    assert client.post("/object/data/a", content=bytes(11)).json()["statusCode"] == "413"
    assert (
        client.post("/object/data/a", content=b"1", headers={"Content-Type": "text/csv"}).json()["statusCode"] == "415"
    )
    assert client.post("/object/data/a", content=b"1", headers={"Content-Type": "image/png"}).status_code == 200


def test_api_key_decides_which_objects_are_visible(server):
    server.put("data", "a", b"1")
    server.put("open", "a", b"1")
    with httpx.Client(base_url=f"{server.url}/storage/v1") as client:
        for headers, code in (({}, "403"), ({"apikey": "wrong"}, "403"), ({"apikey": "anon-key"}, "404")):
            answer = client.get("/object/data/a", headers=headers)
            assert (answer.status_code, answer.json()["statusCode"]) == (400, code)
        assert client.post("/object/list/data", json={}, headers={"apikey": "anon-key"}).json() == []
        assert client.post("/object/data/b", headers={"apikey": "anon-key"}).json()["statusCode"] == "403"
        assert client.get("/object/public/open/a").content == b"1"
        assert client.get("/object/data/a", headers={"apikey": "service-key"}).content == b"1"


def test_signed_url_returns_one_object_without_key_until_it_expires(server, client):
    for key in ("a", "b"):
        server.put("data", key, b"1")
    good = client.post("/object/sign/data/a", json={"expiresIn": 60}).json()["signedURL"]
    late = client.post("/object/sign/data/a", json={"expiresIn": -1}).json()["signedURL"]
    with httpx.Client(base_url=f"{server.url}/storage/v1") as anonymous:
        assert anonymous.get(good).content == b"1"
        assert anonymous.get(late).json()["error"] == "InvalidJWT"
        assert anonymous.get(good[:-2]).json()["error"] == "InvalidJWT"
        assert anonymous.get(good.replace("/data/a", "/data/b")).json()["error"] == "InvalidSignature"


def begin(client, length: int, **headers: str) -> httpx.Response:
    named = ",".join(f"{k} {base64.b64encode(v).decode()}" for k, v in (("bucketName", b"data"), ("objectName", b"a")))
    return client.post(
        "/upload/resumable", headers=TUS | {"Upload-Length": str(length), "Upload-Metadata": named} | headers
    )


def test_resumable_upload_keeps_its_offset_and_rejects_other_offsets(server, client):
    place = begin(client, 10).headers["Location"]
    part = TUS | {"Content-Type": "application/offset+octet-stream"}
    assert client.patch(place, content=b"0123", headers=part | {"Upload-Offset": "0"}).headers["Upload-Offset"] == "4"
    assert client.patch(place, content=b"45", headers=part | {"Upload-Offset": "3"}).status_code == 409
    assert "a" not in server.objects["data"]
    assert client.head(place, headers=TUS).headers["Upload-Offset"] == "4"
    assert client.patch(place, content=b"456789", headers=part | {"Upload-Offset": "4"}).status_code == 204
    assert server.get("data", "a") == b"0123456789"


def test_resumable_upload_is_rejected_at_creation_with_real_status(server, client):
    assert begin(client, 20_000_001).status_code == 413
    server.put("data", "a", b"1")
    assert begin(client, 10).status_code == 409
    assert begin(client, 10, **{"x-upsert": "true"}).status_code == 201
    assert client.head("/upload/resumable/unknown", headers=TUS).status_code == 404


def test_received_bytes_of_interrupted_chunk_are_kept(server, client):
    place = begin(client, 1_000_000).headers["Location"]
    server.fault("cut_request", on="PATCH", after=300_000)
    with pytest.raises(httpx.TransportError):
        client.patch(place, content=bytes(1_000_000), headers=TUS | {"Upload-Offset": "0"})
    assert client.head(place, headers=TUS).headers["Upload-Offset"] == "300000"


def test_official_client_can_upload_download_list_and_sign(server):
    from storage3 import SyncStorageClient

    content = bytes(range(256)) * 9 + b"\r\n--\r\n"
    with httpx.Client() as http:
        data = SyncStorageClient(f"{server.url}/storage/v1/", KEY, http_client=http).from_("data")
        for _ in range(2):
            data.upload("a b/c.png", content, {"content-type": "image/png", "upsert": "true"})
        assert server.objects["data"]["a b/c.png"].mime == "image/png"
        assert data.download("a b/c.png") == content
        assert [entry["name"] for entry in data.list("a b")] == ["c.png"]
        assert [entry.name for entry in data.list_v2().objects] == ["a b/c.png"]
        assert http.get(data.create_signed_url("a b/c.png", 60)["signedURL"]).content == content


def test_missing_route_returns_404(client):
    assert client.get("/nothing").json()["error"] == "Not Found"
