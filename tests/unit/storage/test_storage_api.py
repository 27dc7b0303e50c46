"""Error responses of the Storage API and errors of httpx become a TrainerError, without secrets."""

from __future__ import annotations

import inspect
import json
import logging
import threading
import time
import traceback

import httpcore
import httpx
import pytest

from tests.storage_server import StorageServer
from trainer.core.errors import BadRequest, Misconfigured, ObjectMissing, TrainerError, Unavailable
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.remote.stoppable import StoppableStream, stoppable
from trainer.remote.storage_api import Answer, HttpTimes, NoSuchRoute, StorageApi, Target, TooLarge, object_path

KEY = "sb_secret_AbCdEf0123456789"
READING = Target(bucket="data", key="a/b.pt")
WRITING = Target(bucket="data", key="a/b.pt", writing=True, bytes=123_456_789)


@pytest.fixture
def api():
    api = StorageApi("http://storage.test", KEY)
    yield api
    api.close()


def refused(api: StorageApi, body, status: int = 400, target: Target = READING, **headers: str) -> TrainerError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return api.refused(Answer(status=status, headers=httpx.Headers(headers), body=content), target)


def said(status: str, error: str, message: str, **more: str) -> dict[str, str]:
    return {"statusCode": status, "error": error, "message": message, **more}


@pytest.mark.parametrize(("body", "status", "error", "words"), [
    # HTTP 400 with the real status in the body, old and new format
    (said("404", "not_found", "Object not found"), 400, ObjectMissing, "object 'a/b.pt' does not exist in bucket 'data'"),
    (said("404", "NoSuchKey", "Object not found", code="NoSuchKey"), 404, ObjectMissing, "'a/b.pt'"),
    (said("404", "Bucket not found", "Bucket not found"), 400, ObjectMissing, "bucket 'data' does not exist"),
    (said("404", "x", "x", code="NoSuchBucket"), 404, ObjectMissing, "bucket 'data' does not exist"),
    (said("403", "Unauthorized", "Invalid Compact JWS"), 400, Misconfigured, "check the key"),
    (said("403", "Unauthorized", "new row violates row-level security policy"), 400, Misconfigured, "row-level security"),
    (said("400", "InvalidJWT", "jwt expired", code="InvalidJWT"), 400, Misconfigured, "check the key"),
    ({"message": "Invalid authentication credentials"}, 401, Misconfigured, "check the key"),
    (said("400", "InvalidKey", "Invalid key: naïve"), 400, BadRequest, "rename it"),
    (said("415", "invalid_mime_type", "mime type x is not supported"), 400, Misconfigured, "allowed MIME types"),
    (said("429", "TooManyRequests", "pool full"), 400, Unavailable, "429"),
    (said("409", "Duplicate", "The resource already exists"), 400, Unavailable, "409"),
    (said("500", "Internal", "Internal Server Error"), 500, Unavailable, "500"),
    (said("544", "DatabaseTimeout", "timed out"), 400, Unavailable, "544"),
    (said("402", "quota", "storage quota exceeded"), 400, Misconfigured, "quota exceeded"),
    # answers of a gateway, a login page, a wrong URL, and plain text of the resumable routes
    (b"<html>502 Bad Gateway</html>", 502, Unavailable, "a web page"),
    (b"", 503, Unavailable, "no reason given"),
    (b"", 302, Unavailable, "302"),
    ({"message": "no Route matched with those values"}, 404, NoSuchRoute, "check the Supabase URL"),
    (b"<html>nothing here</html>", 404, NoSuchRoute, "check the Supabase URL"),
    ({"message": "Route POST:/x not found", "error": "Not Found", "statusCode": 404}, 404, NoSuchRoute, "URL"),
    (b"Upload-Offset conflict", 409, Unavailable, "conflict"),
    (b"locked", 423, Unavailable, "423"),
    (b"Bucket not found", 404, ObjectMissing, "bucket 'data'"),
    (b"Invalid key: naive#", 400, BadRequest, "rename it"),
    (b"[1, 2]", 400, Misconfigured, "no reason given"),
    (b"", 400, Misconfigured, "'a/b.pt'"),
])  # fmt: skip
def test_rejection_becomes_error_with_advice(api, body, status, error, words):
    found = refused(api, body, status)
    assert type(found) is error
    assert words in str(found)


@pytest.mark.parametrize("body", [said("413", "Payload too large", "too big"), b"Maximum size exceeded"])
def test_error_of_too_large_object_has_name_and_size(api, body):
    found = refused(api, body, 400 if isinstance(body, dict) else 413, WRITING)
    assert type(found) is TooLarge
    assert "'a/b.pt' (123.5 MB)" in str(found)


def test_missing_bucket_raises_object_missing_for_reads_and_misconfigured_for_writes(api):
    body = said("404", "Bucket not found", "Bucket not found", code="NoSuchBucket")
    assert isinstance(refused(api, body), ObjectMissing)
    assert "create it" in str(refused(api, body, target=WRITING))


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", None)])
def test_retry_after_is_passed_on(api, value, seconds):
    found = refused(api, b"", 429, **{"Retry-After": value})
    assert isinstance(found, Unavailable)
    assert found.retry_after == seconds


def test_every_error_of_httpx_becomes_trainer_error(api):
    bugs = {httpx.HTTPStatusError}  # only `raise_for_status` raises this error, and the service does not call it
    kinds = [kind for _, kind in inspect.getmembers(httpx, inspect.isclass) if issubclass(kind, httpx.HTTPError)]
    assert len(kinds) > 15
    for kind in [*kinds, httpx.InvalidURL]:
        if kind in bugs:
            continue
        with pytest.raises((Unavailable, Misconfigured)) as caught, api._translated():
            raise kind(f"something about {KEY} and token=abc.def")
        text = "".join(traceback.format_exception(caught.value))
        assert KEY not in str(caught.value) + repr(caught.value)
        assert "abc.def" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert isinstance(caught.value, Misconfigured) == (kind in (httpx.InvalidURL, httpx.UnsupportedProtocol)), text


def test_closed_port_raises_unavailable():
    api = StorageApi("http://127.0.0.1:9", KEY)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1 failed: ConnectError"):
        api.call("GET", "/bucket", READING)
    api.close()


def test_unknown_host_raises_unavailable():
    api = StorageApi("http://no-such-host.invalid", KEY)
    with pytest.raises(Unavailable, match=r"no-such-host\.invalid"):
        api.call("GET", "/bucket", READING)
    api.close()


@pytest.mark.parametrize("url", ["", "supabase.co", "ftp://host", "https://", "http://[", "https:///x", "http://a b"])
def test_invalid_url_is_rejected(url):
    with pytest.raises(Misconfigured, match="SUPABASE_URL must be"):
        StorageApi(url, KEY)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_invalid_key_is_rejected_without_quoting_it(key):
    with pytest.raises(Misconfigured, match="key is empty or contains") as caught:
        StorageApi("http://storage.test", key)
    assert not key or key not in str(caught.value)


def test_no_secret_is_in_repr_message_or_log(caplog):
    caplog.set_level(logging.DEBUG)
    with StorageServer({"data": False}) as server:
        api = StorageApi(server.url, KEY)
        server.fault("status", status=418, body=f"you sent {KEY} and ?token=abc.def&x".encode())
        for _ in range(2):
            with pytest.raises(Misconfigured) as caught:
                api.call("GET", "/bucket/data", READING)
            assert KEY not in "".join(traceback.format_exception(caught.value))
            assert "abc.def" not in str(caught.value)
        assert KEY not in repr(api) + repr(vars(api)["_client"])
        api.close()
    assert "127.0.0.1" in caplog.text
    assert KEY not in caplog.text


def test_project_key_and_role_token_are_sent_for_restricted_role():
    api = StorageApi("http://storage.test", "role.jwt.token", apikey="sb_publishable_x")
    assert (api._client.headers["apikey"], api._client.headers["authorization"]) == (
        "sb_publishable_x",
        "Bearer role.jwt.token",
    )
    api.close()


@pytest.mark.parametrize(("key", "path"), [
    ("a b/c.jpg", "/object/data/a%20b/c.jpg"), ("a?b&c=d;e,f", "/object/data/a%3Fb%26c%3Dd%3Be%2Cf"),
    ("x+y@z:!'()*", "/object/data/x%2By%40z%3A%21%27%28%29%2A"), ("naïve%", "/object/data/na%C3%AFve%25"),
])  # fmt: skip
def test_object_key_is_escaped_in_path(key, path):
    assert object_path("object", "data", key) == path


class Silent(httpcore.NetworkStream):
    """A connection that only reports whether the server has closed it."""

    def __init__(self) -> None:
        self.asked = 0
        self.hung_up = False

    def get_extra_info(self, info):
        assert info == "is_readable"
        self.asked += 1
        return self.hung_up


def test_idle_connections_are_checked_at_most_every_100_ms(monkeypatch):
    inner = Silent()
    stream = StoppableStream(inner)
    for _ in range(50):
        assert not stream.get_extra_info("is_readable")
    assert inner.asked == 1

    inner.hung_up, later = True, time.monotonic() + 0.2
    monkeypatch.setattr(time, "monotonic", lambda: later)
    for _ in range(2):
        assert stream.get_extra_info("is_readable")


def test_stop_ends_blocked_write():
    with StorageServer({"data": False}, key=KEY) as server:
        api, stop = StorageApi(server.url, KEY), StopSignal()
        server.fault("slow", rate=30_000.0)
        timer = threading.Timer(0.3, stop.set, [StopReason.CANCELED])
        timer.start()
        began = time.monotonic()
        with stoppable(stop), pytest.raises(Stopped):
            api.call("POST", "/object/data/a", WRITING, content=b"x" * 64_000_000)
        assert 0.25 < time.monotonic() - began < 15
        timer.join()
        api.close()


def test_blocked_write_times_out_after_write_limit():
    with StorageServer({"data": False}, key=KEY) as server:
        api = StorageApi(server.url, KEY, times=HttpTimes(write=0.3))
        server.fault("slow", rate=30_000.0)
        with stoppable(StopSignal()), pytest.raises(Unavailable, match="WriteTimeout"):
            api.call("POST", "/object/data/a", WRITING, content=b"x" * 64_000_000)
        api.close()


def test_upload_has_longer_read_timeout_than_other_calls():
    with StorageServer({"data": False}, key=KEY) as server:
        api = StorageApi(server.url, KEY, times=HttpTimes(read=0.2, stored=20))
        server.fault("delay", seconds=0.6, times=2)
        api.call("POST", "/object/data/a", WRITING, content=b"x")
        with pytest.raises(Unavailable, match="ReadTimeout"):
            api.call("GET", "/bucket/data", READING)
        api.close()
