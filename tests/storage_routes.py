"""The routes of the fake Storage server: listing, reading, signing and uploading objects."""

from __future__ import annotations

import base64
import bisect
import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

from tests.storage_http import Exchange
from tests.storage_state import Refusal, Stored, Upload

GOOD_KEY = re.compile(r"[A-Za-z0-9_/!\-.*'() &@=;:+,?]+")


class Handler(Exchange):
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

    # ── stored objects ──

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

    # ── reading ──

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
        if wanted:  # the real server also ignores If-Range
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
            if not found or not (found[1] or found[2]) or (found[1] and int(found[1]) >= len(content)):
                raise Refusal(416, "InvalidRange", "The requested range cannot be satisfied", http=416)
            start = int(found[1]) if found[1] else max(0, len(content) - int(found[2]))
            end = min(int(found[2]) if found[1] and found[2] else len(content) - 1, len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        self.send(status, content, headers, count=True)

    # ── uploading ──

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
            except Refusal as refusal:  # these routes send the actual HTTP status and plain text
                self.send(int(refusal.body["statusCode"]), str(refusal).encode(), tus)
            return
        upload = self.state.uploads.get(name)
        if upload is None:
            self.send(404, b"The file for this url was not found\n", tus)
            return
        with upload.lock:
            self.continue_upload(upload, tus)

    def continue_upload(self, upload: Upload, tus: dict[str, str]) -> None:
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
    """Replace the form in `file` by the uploaded file in the form. Return the content type of the uploaded file."""
    for section in file.read_bytes().split(f"--{boundary}".encode()):
        head, _, content = section.partition(b"\r\n\r\n")
        if b"filename=" in head:
            file.write_bytes(content.removesuffix(b"\r\n"))
            found = re.search(rb"(?i)content-type: *(\S+)", head)
            return found[1].decode() if found else "text/plain"
    raise Refusal(400, "InvalidRequest", "there is no file in the form")
