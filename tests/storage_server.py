"""A stand-in for the Supabase Storage API with the measured behavior of the real server, and with faults on demand.

    with StorageServer({"datasets": False}, key="secret") as server:
        server.put("datasets", "a/data.yaml", b"…")
        server.fault("status", on="GET /object/", status=503, times=2)
        … server.url …

`python -m tests.storage_server --port 5005 --bucket datasets --bucket training-artifacts --key …` runs it alone.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import contextlib
import hashlib
import json
import re
import secrets
import socket
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote

GOOD_KEY = re.compile(r"[A-Za-z0-9_/!\-.*'() &@=;:+,?]+")
PORTAL = b"<html><body>Please log in to the network</body></html>"


class Refusal(Exception):
    """An error response: nearly always HTTP 400, with the real status in the body."""

    def __init__(self, code: int, error: str, message: str, http: int = 400) -> None:
        super().__init__(message)
        self.http = http
        self.body = {"statusCode": str(code), "error": error, "message": message, "code": error}


class Cut(Exception):
    """Close the connection without sending another byte."""


@dataclass
class Bucket:
    public: bool = False
    file_size_limit: int | None = None
    mime_types: list[str] | None = None


@dataclass
class Stored:
    file: Path
    size: int
    md5: str
    mime: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()))


@dataclass
class Upload:
    bucket: str
    key: str
    mime: str
    length: int
    file: Path
    lock: threading.Lock = field(default_factory=threading.Lock)  # one request at a time, even if its client is gone


@dataclass
class Fault:
    """`kind`: status, delay, slow, portal, cut, truncate, corrupt, etag, cut_request, lost; see `Handler`."""

    kind: str
    on: str
    times: int
    status: int = 503
    after: int = 0  # bytes
    seconds: float = 0.0
    rate: float = 1e6  # bytes per second
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


class StorageServer:
    def __init__(
        self, buckets: dict[str, bool] | None = None, *, key: str = "service-key", anon_key: str = "anon-key",
        port: int = 0, host: str = "127.0.0.1", limit: int | None = None, v2: bool = True, tus_host: str | None = None,
    ) -> None:  # fmt: skip
        self.buckets = {name: Bucket(public) for name, public in (buckets or {}).items()}
        self.keys, self.limit, self.v2 = {key: "service", anon_key: "anon"}, limit, v2
        self.objects: dict[str, dict[str, Stored]] = {name: {} for name in self.buckets}
        self.uploads: dict[str, Upload] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD /path", without the prefix and the query
        self.received = self.sent = 0  # bytes of object bodies
        self.lock = threading.RLock()
        self.busy = 0  # requests in progress
        self.idle = threading.Condition(self.lock)
        self.secret = secrets.token_hex(8)
        self._folder = tempfile.TemporaryDirectory(prefix="storage-")
        self._http = Server((host, port), type("Bound", (Handler,), {"server_state": self}))
        self.url = f"http://{host}:{self._http.server_address[1]}"
        self.tus_host = tus_host or self.url

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.hang_up()
        self._http.server_close()
        self._folder.cleanup()

    def fault(self, kind: str, *, on: str = "", times: int = 1, **details: Any) -> Fault:
        """Add a fault to the next `times` requests whose `METHOD /path` contains `on`."""
        with self.lock:
            self.faults.append(Fault(kind, on, times, **details))
            return self.faults[-1]

    def settled(self) -> int:
        """Return `sent` after the last response has ended, also to a client that closed its connection."""
        with self.idle:
            assert self.idle.wait_for(lambda: self.busy == 0, 30)
            return self.sent

    def take_faults(self, request: str) -> dict[str, Fault]:
        with self.lock:
            self.requests.append(request)
            taken = {fault.kind: fault for fault in reversed(self.faults) if fault.times > 0 and fault.on in request}
            for fault in taken.values():
                fault.times -= 1
            return taken

    def put(self, bucket: str, key: str, content: bytes, mime: str = "application/octet-stream") -> None:
        file = self.new_file()
        file.write_bytes(content)
        self.commit(bucket, key, file, mime)

    def get(self, bucket: str, key: str) -> bytes:
        return self.objects[bucket][key].file.read_bytes()

    def new_file(self) -> Path:
        return Path(self._folder.name) / uuid.uuid4().hex

    def commit(self, bucket: str, key: str, file: Path, mime: str) -> Stored:
        with file.open("rb") as content:
            md5 = hashlib.file_digest(content, "md5").hexdigest()
        with self.lock:
            stored = self.objects[bucket][key] = Stored(file, file.stat().st_size, md5, mime)
        return stored

    def token(self, path: str, expires: float) -> str:
        signature = hashlib.sha256(f"{self.secret}{path}{expires}".encode()).hexdigest()
        return base64.urlsafe_b64encode(json.dumps([path, expires, signature]).encode()).decode().rstrip("=")


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: set[socket.socket] = set()
        self.over = False

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        self.over = True
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not self.over and not isinstance(sys.exception(), ConnectionError | Cut):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, 65536
    server_state: StorageServer

    def log_message(self, *_: object) -> None: ...

    def handle_any(self) -> None:
        self.state = self.server_state
        with self.state.idle:
            self.state.busy += 1
        try:
            self.handle_request()
        finally:
            with self.state.idle:
                self.state.busy -= 1
                self.state.idle.notify_all()

    def handle_request(self) -> None:
        path, _, query = self.path.partition("?")
        path, self.query = path.removeprefix("/storage/v1"), parse_qs(query)
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.faults = self.state.take_faults(f"{self.command} {path}")
        try:
            if self.trouble_before():
                return
            opened_by_url = self.command != "POST" and path.startswith(("/object/public/", "/object/sign/"))
            self.role = "anon" if opened_by_url else self.who()
            self.dispatch([unquote(part) for part in path.strip("/").split("/")])
        except Refusal as refusal:
            self.answer(refusal.http, refusal.body)
        except Cut:
            self.close_connection = True

    def trouble_before(self) -> bool:
        """Return whether a fault has answered the request."""
        if fault := self.faults.get("delay"):
            time.sleep(fault.seconds)
        if fault := self.faults.get("status"):
            body = b"<html>%d</html>" % fault.status if fault.body is None else fault.body
            self.send(fault.status, body, {"Content-Type": "text/html"} | fault.headers)
        elif "portal" in self.faults:
            self.send(200, PORTAL, {"Content-Type": "text/html"})
        return bool({"status", "portal"} & set(self.faults))

    def who(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("apikey", "")
        if token not in self.state.keys:
            raise Refusal(403, "Unauthorized", "Invalid Compact JWS" if token else "headers must have authorization")
        return self.state.keys[token]

    def dispatch(self, parts: list[str]) -> None:
        rest = "/".join(parts[2:])
        match (self.command, parts):
            case ("GET", ["bucket"]):
                self.answer(200, [self.bucket_json(name) for name in self.state.buckets if self.role == "service"])
            case ("GET", ["bucket", name]):
                self.answer(200, self.bucket_json(self.bucket(name, visible=self.role == "service")))
            case ("POST", ["object", "list", bucket]):
                self.answer(200, self.list_v1(bucket, self.json()))
            case ("POST", ["object", "list-v2", bucket]) if self.state.v2:
                self.answer(200, self.list_v2(bucket, self.json()))
            case ("POST", ["object", "sign", bucket, *key]) if key:
                self.stored(bucket, "/".join(key))
                path, body = f"{bucket}/{'/'.join(key)}", self.json()
                token = self.state.token(path, time.time() + float(body["expiresIn"]))
                self.answer(200, {"signedURL": f"/object/sign/{path}?token={token}"})
            case ("GET" | "HEAD", ["object", "sign", bucket, *key]):
                self.check_token(f"{bucket}/{'/'.join(key)}")
                self.serve(self.stored(bucket, "/".join(key), visible=True))
            case ("GET" | "HEAD", ["object", "public", bucket, *key]):
                self.bucket(bucket, visible=bucket in self.state.buckets and self.state.buckets[bucket].public)
                self.serve(self.stored(bucket, "/".join(key), visible=True))
            case ("GET", ["object", "info", bucket, *key]):
                stored = self.stored(bucket, "/".join(key))
                self.answer(200, {"size": stored.size, "etag": f'"{stored.md5}"', "content_type": stored.mime})
            case ("GET" | "HEAD", ["object", "authenticated", bucket, *key] | ["object", bucket, *key]):
                self.serve(self.stored(bucket, "/".join(key)))
            case ("POST" | "PUT", ["object", bucket, *_]):
                self.upload(bucket, rest)
            case ("DELETE", ["object", bucket, *key]) if key:
                self.stored(bucket, rest)
                with self.state.lock:
                    self.state.objects[bucket].pop(rest, None)
                self.answer(200, {"message": "Successfully deleted"})
            case (_, ["upload", "resumable", *name]):
                self.resumable("/".join(name))
            case _:
                message = f"Route {self.command}:{self.path} not found"
                self.answer(404, {"message": message, "error": "Not Found", "statusCode": 404})

    # ── what is stored ──

    def bucket(self, name: str, *, visible: bool = True) -> str:
        if name not in self.state.buckets or not visible:
            raise Refusal(404, "NoSuchBucket", "Bucket not found")
        return name

    def bucket_json(self, name: str) -> dict[str, Any]:
        bucket = self.state.buckets[name]
        limits = {"file_size_limit": bucket.file_size_limit, "allowed_mime_types": bucket.mime_types}
        return {"id": name, "name": name, "public": bucket.public, **limits}

    def stored(self, bucket: str, key: str, *, visible: bool = False) -> Stored:
        stored = self.state.objects[self.bucket(bucket)].get(key)
        if stored is None or not (visible or self.role == "service"):
            raise Refusal(404, "NoSuchKey", "Object not found")
        return stored

    def visible_keys(self, bucket: str) -> list[str]:
        with self.state.lock:
            return sorted(self.state.objects.get(bucket, {})) if self.role == "service" else []

    def entry(self, bucket: str, key: str, name: str) -> dict[str, Any]:
        stored = self.state.objects[bucket][key]
        metadata = {"eTag": f'"{stored.md5}"', "size": stored.size, "mimetype": stored.mime}
        times = dict.fromkeys(("created_at", "updated_at", "last_accessed_at"), stored.at)
        return {"name": name, "id": stored.id, "metadata": metadata} | times

    def list_v1(self, bucket: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        folder = body.get("prefix", "")
        if folder and not folder.endswith("/"):
            folder += "/"
        entries: dict[str, dict[str, Any]] = {}
        for key in self.visible_keys(bucket):
            if key.startswith(folder):
                name, _, deeper = key[len(folder) :].partition("/")
                folder_entry = {"name": name, "id": None, "metadata": None}
                entries.setdefault(name, folder_entry if deeper else self.entry(bucket, key, name))
        offset = body.get("offset", 0)
        return [entries[name] for name in sorted(entries)][offset : offset + min(body.get("limit", 100), 1500)]

    def list_v2(self, bucket: str, body: dict[str, Any]) -> dict[str, Any]:
        prefix, limit = body.get("prefix", ""), min(body.get("limit", 1000), 1000)
        keys = [key for key in self.visible_keys(bucket) if key.startswith(prefix)]
        start = bisect.bisect(keys, base64.b64decode(body["cursor"]).decode()) if body.get("cursor") else 0
        page = keys[start : start + limit]
        more = start + limit < len(keys)
        cursor = {"nextCursor": base64.b64encode(page[-1].encode()).decode()} if more else {}
        objects = [self.entry(bucket, key, key) for key in page]
        return {"hasNext": more, "folders": [], "objects": objects, **cursor}

    def check_token(self, path: str) -> None:
        token = self.query.get("token", [""])[0]
        try:
            signed, expires, _ = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        except ValueError:
            raise Refusal(400, "InvalidJWT", "jwt malformed") from None
        if token != self.state.token(signed, expires) or time.time() > expires:
            raise Refusal(400, "InvalidJWT", "jwt expired or tampered with")
        if signed != path:
            raise Refusal(400, "InvalidSignature", "The signature is for another object")

    # ── bytes out ──

    def serve(self, stored: Stored) -> None:
        etag = f'"{"0" * 32 if "etag" in self.faults else stored.md5}"'
        if self.headers.get("If-None-Match") == etag:
            self.send(304, b"", {"ETag": etag})
            return
        content = stored.file.read_bytes()
        if "corrupt" in self.faults:
            content = bytes([content[0] ^ 255]) + content[1:]
        if fault := self.faults.get("truncate"):
            content = content[: fault.after]
        headers = {"ETag": etag, "Content-Type": stored.mime, "Accept-Ranges": "bytes"}
        status, wanted = 200, self.headers.get("Range")
        if wanted:  # If-Range is ignored, as the real server does
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
            if not found or not (found[1] or found[2]) or (found[1] and int(found[1]) >= len(content)):
                raise Refusal(416, "InvalidRange", "The requested range cannot be satisfied", http=416)
            start = int(found[1]) if found[1] else max(0, len(content) - int(found[2]))
            end = min(int(found[2]) if found[1] and found[2] else len(content) - 1, len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        self.send(status, content, headers, count=True)

    def answer(self, status: int, body: Any) -> None:
        self.send(status, json.dumps(body).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def send(self, status: int, body: bytes, headers: dict[str, str], *, count: bool = False) -> None:
        while self.unread and self.read():
            pass
        if "lost" in self.faults:
            raise Cut
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body, count=count)

    def send_body(self, body: bytes, *, count: bool) -> None:
        cut, slow = self.faults.get("cut"), self.faults.get("slow")
        body = body[: cut.after] if cut else body
        step = max(1, int(slow.rate / 20)) if slow else 1 << 20
        for start in range(0, len(body), step):
            with self.state.lock:  # before the client gets them, because it may list the objects at once
                self.state.sent += min(step, len(body) - start) if count else 0
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            time.sleep(0.05 if slow else 0)
        if cut:
            raise Cut

    # ── bytes in ──

    def read(self) -> bytes:
        block = self.rfile.read1(min(self.unread, 65536))
        self.unread = self.unread - len(block) if block else 0
        return block

    def json(self) -> dict[str, Any]:
        content, length = b"", self.unread
        while self.unread:
            content += self.read()
        if len(content) < length:
            raise Cut  # the client closed the connection
        return json.loads(content or b"{}")

    def receive(self, file: Path) -> None:
        """Append the body to `file`; the bytes received before an interruption stay."""
        cut, slow, arrived = self.faults.get("cut_request"), self.faults.get("slow"), 0
        with file.open("ab") as out:
            while self.unread:
                block = self.read()
                if cut and arrived + len(block) > cut.after:
                    block = block[: cut.after - arrived]
                    self.unread = 0
                arrived += out.write(block)
                time.sleep(len(block) / slow.rate if slow else 0)
        with self.state.lock:
            self.state.received += arrived
        if cut:
            raise Cut

    def check_new(self, bucket: str, key: str, mime: str, size: int, *, upsert: bool) -> None:
        limits = self.state.buckets[self.bucket(bucket)]
        if not GOOD_KEY.fullmatch(key) or {".", ".."} & set(key.split("/")):
            raise Refusal(400, "InvalidKey", f"Invalid key: {key}")
        if self.role != "service":
            raise Refusal(403, "AccessDenied", "new row violates row-level security policy")
        if size > min(self.state.limit or size, limits.file_size_limit or size):
            raise Refusal(413, "EntityTooLarge", "The object exceeded the maximum allowed size")
        if limits.mime_types and mime not in limits.mime_types:
            raise Refusal(415, "InvalidMimeType", f"mime type {mime} is not supported")
        if not upsert and key in self.state.objects[bucket]:
            raise Refusal(409, "KeyAlreadyExists", "The resource already exists")

    def upload(self, bucket: str, key: str) -> None:
        mime = self.headers.get("Content-Type", "text/plain")
        upsert = self.command == "PUT" or self.headers.get("x-upsert") == "true"
        self.check_new(bucket, key, mime, self.unread, upsert=upsert)
        file = self.state.new_file()
        self.receive(file)
        if mime.startswith("multipart/form-data"):
            mime = unwrap(file, mime.partition("boundary=")[2])
        stored = self.state.commit(bucket, key, file, mime)
        self.answer(200, {"Key": f"{bucket}/{key}", "Id": stored.id})

    def resumable(self, name: str) -> None:
        tus = {"Tus-Resumable": "1.0.0"}
        if self.command == "POST" and not name:
            try:
                self.send(201, b"", tus | {"Location": self.create_upload()})
            except Refusal as refusal:  # these routes answer with real statuses, in plain text
                self.send(int(refusal.body["statusCode"]), str(refusal).encode(), tus)
            return
        upload = self.state.uploads.get(name)
        if upload is None:
            self.send(404, b"The file for this url was not found\n", tus)
            return
        with upload.lock:
            self.go_on(upload, tus)

    def go_on(self, upload: Upload, tus: dict[str, str]) -> None:
        offset = str(upload.file.stat().st_size)
        if self.command == "HEAD":
            self.send(200, b"", tus | {"Upload-Offset": offset, "Upload-Length": str(upload.length)})
        elif self.headers.get("Upload-Offset") != offset:
            self.send(409, b"Upload-Offset conflict\n", tus)
        else:
            self.receive(upload.file)
            if upload.file.stat().st_size == upload.length:
                self.state.commit(upload.bucket, upload.key, upload.file, upload.mime)
            self.send(204, b"", tus | {"Upload-Offset": str(upload.file.stat().st_size)})

    def create_upload(self) -> str:
        pairs = [pair.strip().partition(" ") for pair in self.headers["Upload-Metadata"].split(",")]
        metadata = {name: base64.b64decode(value).decode() for name, _, value in pairs}
        bucket, key, mime = metadata["bucketName"], metadata["objectName"], metadata.get("contentType", "")
        length, upsert = int(self.headers["Upload-Length"]), self.headers.get("x-upsert") == "true"
        self.check_new(bucket, key, mime, length, upsert=upsert)
        name = base64.urlsafe_b64encode(f"{bucket}/{key}/{uuid.uuid4()}".encode()).decode()
        file = self.state.new_file()
        file.touch()
        self.state.uploads[name] = Upload(bucket, key, mime, length, file)
        return f"{self.state.tus_host}/storage/v1/upload/resumable/{name}"


def unwrap(file: Path, boundary: str) -> str:
    """Reduce `file` to the content of the form's file. Return its content type."""
    for section in file.read_bytes().split(f"--{boundary}".encode()):
        head, _, content = section.partition(b"\r\n\r\n")
        if b"filename=" in head:
            file.write_bytes(content.removesuffix(b"\r\n"))
            found = re.search(rb"(?i)content-type: *(\S+)", head)
            return found[1].decode() if found else "text/plain"
    raise Refusal(400, "InvalidRequest", "there is no file in the form")


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
    setattr(Handler, f"do_{_method}", Handler.handle_any)


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for the Supabase Storage API.")
    parser.add_argument("--port", type=int, default=5005)
    parser.add_argument("--bucket", action="append", default=[], help="a private bucket; may be repeated")
    parser.add_argument("--key", default="service-key")
    options = parser.parse_args()
    with StorageServer(dict.fromkeys(options.bucket, False), key=options.key, port=options.port) as server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
