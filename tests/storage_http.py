"""HTTP of the fake Storage server: connections, request and response bodies, and injected faults."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.storage_state import Cut, Refusal, StorageState

PORTAL = b"<html><body>Please log in to the network</body></html>"


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: set[socket.socket] = set()
        self.is_closing = False

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        self.is_closing = True
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not self.is_closing and not isinstance(sys.exception(), ConnectionError | Cut):
            super().handle_error(request, client_address)


class Exchange(BaseHTTPRequestHandler):
    """A handler for one request and its response. The routes are in `storage_routes`."""

    protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, 65536
    server_state: StorageState

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
            if self.answer_with_fault():
                return
            opened_by_url = self.command != "POST" and path.startswith(("/object/public/", "/object/sign/"))
            self.role = "anon" if opened_by_url else self.find_role()
            self.dispatch([unquote(part) for part in path.strip("/").split("/")])
        except Refusal as refusal:
            self.answer(refusal.http, refusal.body)
        except Cut:
            self.close_connection = True

    def answer_with_fault(self) -> bool:
        """Return whether a fault has answered the request."""
        if fault := self.faults.get("delay"):
            time.sleep(fault.seconds)
        if fault := self.faults.get("status"):
            body = b"<html>%d</html>" % fault.status if fault.body is None else fault.body
            self.send(fault.status, body, {"Content-Type": "text/html"} | fault.headers)
        elif "portal" in self.faults:
            self.send(200, PORTAL, {"Content-Type": "text/html"})
        return bool({"status", "portal"} & set(self.faults))

    def find_role(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("apikey", "")
        if token not in self.state.keys:
            raise Refusal(403, "Unauthorized", "Invalid Compact JWS" if token else "headers must have authorization")
        return self.state.keys[token]

    def dispatch(self, parts: list[str]) -> None:
        raise NotImplementedError

    # ── responses ──

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
            with (
                self.state.lock
            ):  # counted before the client gets the bytes, because a test can read the counter at once
                self.state.sent += min(step, len(body) - start) if count else 0
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            time.sleep(0.05 if slow else 0)
        if cut:
            raise Cut

    # ── request bodies ──

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
        """Append the body to `file`. After an interruption, the received bytes stay in `file`."""
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


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
    setattr(Exchange, f"do_{_method}", Exchange.handle_any)
