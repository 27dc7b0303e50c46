"""A TCP proxy between a worker and its servers, with faults on request.

with Proxy("127.0.0.1", 5432) as proxy:
… proxy.url …
proxy.cut()        reset every connection, and refuse new connections until `restore`
proxy.freeze()     half-open: connections stay open, but no byte passes in either direction until `restore`
proxy.slow(0.5)    delay each piece of data by 0.5 seconds
proxy.lose(30)     drop 30 % of the packets, in both directions (needs root and nft)
proxy.cut_answer(40)  reset the connection after 40 bytes of the next answer
proxy.restore()    end cut, freeze, slow and lose; frozen data is delivered now
"""

from __future__ import annotations

import selectors
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from typing import Self

PIECE = 65536  # bytes


class Proxy:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._changed = threading.Condition()
        self._mode = "wire"
        self._delay = 0.0
        self._answer_bytes: int | None = None
        self._loses = False
        self._pairs: set[_Pair] = set()
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self.connections = 0  # number of accepted connections

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
        self._set("closed")
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._reset_all()

    def cut(self) -> None:
        self._set("cut")
        self._reset_all()

    def freeze(self) -> None:
        self._set("frozen")

    def slow(self, seconds: float) -> None:
        self._set("wire", seconds)

    def cut_answer(self, answer_bytes: int) -> None:
        with self._changed:
            self._answer_bytes = answer_bytes

    def lose(self, percent: int) -> None:
        lost = f"numgen random mod 100 < {percent} drop"
        hook = "type filter hook input priority 0"
        ours = f"tcp dport {self.port} {lost}; tcp sport {self.port} {lost}"
        self._nft(f"table inet {self._table} {{ chain packets {{ {hook}; {ours}; }}\n}}")
        self._loses = True

    def restore(self) -> None:
        self._set("wire")
        if self._loses:
            self._loses = False
            self._nft(f"delete table inet {self._table}")

    @property
    def _table(self) -> str:
        return f"faults_{self.port}"

    def _nft(self, script: str) -> None:
        subprocess.run(["nft", "-f", "-"], input=script.encode(), check=True, capture_output=True)

    def _set(self, mode: str, delay: float = 0.0) -> None:
        with self._changed:
            self._mode, self._delay = mode, delay
            self._changed.notify_all()

    def _reset_all(self) -> None:
        with self._changed:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.reset()
        for pair in pairs:
            pair.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            pair = None if self._mode == "cut" else self._pair(near)
            if pair is None:
                _reset(near)
                near.close()

    def _pair(self, near: socket.socket) -> _Pair | None:
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            return None
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(None)
        pair = _Pair(self, near, far)
        with self._changed:
            self._pairs.add(pair)
        pair.start()
        return pair

    # ── methods for `_Pair` ──

    def wait_to_pass(self) -> bool:
        """Wait while the proxy is frozen or slow. Return False if the data must be dropped."""
        with self._changed:
            while self._mode == "frozen":
                self._changed.wait()
            mode, delay = self._mode, self._delay
        if delay:
            time.sleep(delay)
        return mode == "wire"

    def shortened(self, answer: bytes) -> tuple[bytes, bool]:
        """Return the bytes of `answer` to send, and whether the connection must be reset afterwards."""
        with self._changed:
            kept, self._answer_bytes = self._answer_bytes, None
        return (answer, False) if kept is None else (answer[:kept], True)

    def forget(self, pair: _Pair) -> None:
        with self._changed:
            self._pairs.discard(pair)


class _Pair:
    """One connection: two sockets and a thread that copies data between them."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self._proxy, self._near, self._far = proxy, near, far
        self._thread = threading.Thread(target=self._carry, name="proxied", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(10)

    def reset(self) -> None:
        for end in (self._near, self._far):
            _reset(end)

    def _carry(self) -> None:
        with self._near, self._far, selectors.DefaultSelector() as selector, suppress(OSError, ValueError):
            selector.register(self._near, selectors.EVENT_READ, self._far)
            selector.register(self._far, selectors.EVENT_READ, self._near)
            while all(self._pass_on(key.fileobj, key.data) for key, _ in selector.select()):
                pass
        self._proxy.forget(self)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> bool:
        piece = source.recv(PIECE)
        if not piece or not self._proxy.wait_to_pass():
            return False
        is_cut = False
        if source is self._far:
            piece, is_cut = self._proxy.shortened(piece)
        target.sendall(piece)
        if is_cut:
            self.reset()
        return not is_cut


def _reset(end: socket.socket) -> None:
    # with a linger time of zero, the other side sees a reset instead of a normal close
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
