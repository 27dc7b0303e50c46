"""A gateway like that of a Supabase project: it has one URL, replaces new-style keys by JWTs, and injects faults."""

from __future__ import annotations

import http.client
import http.server
import io
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Literal
from urllib.parse import urlsplit


class Gateway:
    """Routes requests by the prefix of their path, and replaces `secret_key` by `service_key`.

    `faults` is called with the method and path of every request. It can return an answer (status, headers, body) or
    "lose". With "lose", the server gets the request and the gateway drops the answer. The gateway also drops the
    answers to the next `lose_answers` requests.
    """

    HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})

    def __init__(self, routes: dict[str, str], *, secret_key: str = "", service_key: str = "") -> None:
        self.keys = (secret_key, service_key)
        self.routes = routes  # "/rest/v1" → "http://127.0.0.1:3000"
        self.faults: Callable[[str, str], tuple[int, dict[str, str], bytes] | Literal["lose"] | None] | None = None
        self.lose_answers = 0
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._open: set[socket.socket] = set()
        gateway = self

        class Handler(_GatewayHandler):
            owner = gateway

        self._server = _GatewayServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False  # server_close() waits for the threads, so that all sockets are closed
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with suppress(OSError):  # the connection is closed already
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def reset(self) -> None:
        self.faults = None
        self.lose_answers = 0
        self.requests.clear()


class _GatewayServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client closed the connection
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _GatewayHandler(http.server.BaseHTTPRequestHandler):
    owner: Gateway
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.owner._open.add(self.connection)
        self.behind: dict[str, http.client.HTTPConnection] = {}

    def finish(self) -> None:
        for connection in self.behind.values():
            connection.close()
        self.owner._open.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def forward(self) -> None:
        self.owner.requests.append((self.command, self.path, dict(self.headers.items())))
        fault = self.owner.faults and self.owner.faults(self.command, self.path)
        if fault and fault != "lose":
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, body = fault
            self.answer(status, {**headers, "Content-Length": str(len(body))}, io.BytesIO(body))
            return
        prefix = next((p for p in self.owner.routes if self.path.startswith(p + "/")), None)
        if prefix is None:
            self.refuse(404, "application/json", b'{"message":"no Route matched with those values"}')
            return
        try:
            self.pass_on(prefix, is_lost=fault == "lose")
        except (OSError, http.client.HTTPException):
            self.behind.pop(prefix).close()
            with suppress(ConnectionError):  # the client can have closed the connection
                self.refuse(502, "text/html", b"<html><h1>502 Bad Gateway</h1></html>")

    def pass_on(self, prefix: str, *, is_lost: bool) -> None:
        to = urlsplit(self.owner.routes[prefix])
        if prefix not in self.behind:
            self.behind[prefix] = http.client.HTTPConnection(to.hostname or "", to.port, timeout=60)
        headers = {n: v for n, v in self.headers.items() if n.lower() not in Gateway.HOP_BY_HOP}
        self.swap_key(headers)
        length = int(self.headers.get("Content-Length") or 0)
        if length or self.command in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = str(length)
        connection = self.behind[prefix]
        body = _pieces(self.rfile, length) if length else None
        connection.request(self.command, self.path.removeprefix(prefix), body, headers)
        with connection.getresponse() as response:
            kept = {n: v for n, v in response.getheaders() if n.lower() not in Gateway.HOP_BY_HOP - {"content-length"}}
            if is_lost or self.owner.lose_answers > 0:
                response.read()
                self.owner.lose_answers -= not is_lost
                self.close_connection = True
            elif "Content-Length" in kept or self.command == "HEAD":
                self.answer(response.status, kept, response)
            else:
                body = response.read()
                self.answer(response.status, {**kept, "Content-Length": str(len(body))}, io.BytesIO(body))

    def answer(self, status: int, headers: dict[str, str], body: IO[bytes]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            shutil.copyfileobj(body, self.wfile)

    def refuse(self, status: int, content_type: str, body: bytes) -> None:
        self.close_connection = True  # the rest of the request body may be unread
        headers = {"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"}
        self.answer(status, headers, io.BytesIO(body))

    def swap_key(self, headers: dict[str, str]) -> None:
        """Replace a secret key in `apikey` by a JWT, as in hosted projects. Other bearer tokens are not replaced."""
        names = {name.lower(): name for name in headers}
        secret, service = self.owner.keys
        if secret and headers.get(names.get("apikey", "")) == secret:
            bearer = names.get("authorization")
            if bearer is None or headers[bearer] == f"Bearer {secret}":
                headers[bearer or "Authorization"] = f"Bearer {service}"

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = forward  # noqa: N815 the library's names


def _pieces(stream: IO[bytes], length: int) -> Iterator[bytes]:
    """Yield the body of a request in pieces."""
    while length > 0:
        piece = stream.read(min(length, 1 << 16))
        if not piece:
            return
        length -= len(piece)
        yield piece
