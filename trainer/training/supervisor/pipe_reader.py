"""Reads the pipes of a training process, but not faster than a training needs.

A flood of events or output would otherwise use the whole processor of the supervisor. When the allowance of a pipe is
used up, the pipe is not read for a while, so that the writer of the flood waits.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence

_CHUNK = 65536  # bytes; as much as a pipe holds
_LAST_READS = 32  # after the end: the capacity of a pipe, because a process that cannot be killed may still write


class Pipe:
    """The reading end of a pipe. `handle` receives its bytes.

    The allowance grows by `per_second` bytes, up to `burst` bytes. A read costs its bytes and `per_line` bytes for each
    of its lines, because short lines cost more time.
    """

    def __init__(
        self, fd: int, handle: Callable[[bytes], None], *, per_second: float, burst: float, per_line: float
    ) -> None:
        self.fd = fd
        self._handle = handle
        self._per_second = per_second
        self._burst = self._left = burst
        self._per_line = per_line
        self._at = self.next_read = time.monotonic()
        os.set_blocking(fd, False)

    def read(self) -> bool:
        """Handle up to 64 KiB. Return whether the pipe can have more. `next_read` is the time of the next read."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return True
        self._handle(data)
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._left -= len(data) + self._per_line * (data.count(b"\n") + data.count(b"\r"))
        self._at, self.next_read = now, now + max(0.0, -self._left / self._per_second)
        return bool(data)


def read_until_closed(pipes: Sequence[Pipe], lifeline: socket.socket) -> None:
    """Read the pipes until the other end of `lifeline` is closed, then read the rest."""
    by_fd = {pipe.fd: pipe for pipe in pipes}
    paused: list[Pipe] = []
    # not epoll: a training process could use up all entries that the kernel allows this user for epoll
    with selectors.PollSelector() as ready:
        ready.register(lifeline, selectors.EVENT_READ)
        for pipe in pipes:
            ready.register(pipe.fd, selectors.EVENT_READ)
        is_alive = True
        while is_alive:
            found = [key.fd for key, _ in ready.select(_seconds_until_next(paused))]
            is_alive = lifeline.fileno() not in found
            for pipe in [by_fd[fd] for fd in found if fd in by_fd]:
                has_more = pipe.read()
                if not has_more or pipe.next_read > time.monotonic():
                    ready.unregister(pipe.fd)
                    paused += [pipe] if has_more else []
            for pipe in [pipe for pipe in paused if pipe.next_read <= time.monotonic()]:
                paused.remove(pipe)
                ready.register(pipe.fd, selectors.EVENT_READ)
    for pipe in pipes:
        for _ in range(_LAST_READS):
            if not pipe.read():
                break


def _seconds_until_next(paused: Sequence[Pipe]) -> float | None:
    if not paused:
        return None
    return max(0.0, min(pipe.next_read for pipe in paused) - time.monotonic())
