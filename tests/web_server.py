"""A web server on the loopback interface. The tests set its answers."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

Answer = Callable[[socket.socket, str], None]


def body(content: bytes, *headers: str, status: str = "200 OK") -> Answer:
    """Return an answer with the body `content` and its Content-Length."""

    def answer(connection: socket.socket, _: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    return answer


def raw(*parts: bytes) -> Answer:
    """Return an answer that sends `parts` and closes the connection."""

    def answer(connection: socket.socket, _: str) -> None:
        for part in parts:
            connection.sendall(part)

    return answer


def redirect(target: str, status: str = "302 Found") -> Answer:
    return body(b"", f"Location: {target}", status=status)


def in_turn(*answers: Answer) -> Answer:
    """Return an answer that sends each of `answers` once, in order."""
    left = list(answers)

    def answer(connection: socket.socket, path: str) -> None:
        left.pop(0)(connection, path)

    return answer


def endless(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def silent(connection: socket.socket, _: str) -> None:
    connection.settimeout(20)
    connection.recv(1)  # returns when the client closes the connection


class WebServer:
    """`pages`: answer by path. `asked`: the requested paths, in order. `hosts`: the Host headers, in order."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.pages: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.hosts: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait in `accept`
        self._acceptor.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, plain: socket.socket) -> None:
        with plain, contextlib.ExitStack() as opened:
            try:
                connection = (
                    opened.enter_context(self._tls.wrap_socket(plain, server_side=True)) if self._tls else plain
                )
                head = b""
                while b"\r\n\r\n" not in head:
                    part = connection.recv(65536)
                    if not part:
                        return
                    head += part
                lines = head.decode("latin-1").split("\r\n")
                path = lines[0].split(" ")[1]
                self.asked.append(path)
                self.hosts += [line.split(": ", 1)[1] for line in lines if line.lower().startswith("host:")]
                missing = body(b"not here", status="404 Not Found")
                self.pages.get(path.split("?")[0], missing)(connection, path)
            except OSError:
                return  # the client closed the connection


@contextlib.contextmanager
def web_server(tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    server = WebServer(tls)
    try:
        yield server
    finally:
        server.close()
