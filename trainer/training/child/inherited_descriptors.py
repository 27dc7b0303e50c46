"""Gives descriptors of forked processes to their parent over inherited sockets.

The workers of a data loader share the memory of their tensors with the training process. The standard library passes
the descriptors of this memory over a socket with a path, which the sandbox refuses (sandbox/seccomp.py). Here, each
process that multiprocessing forks inherits one end of a pair of connected sockets. The parent asks for a descriptor by
its key, and a thread of the forked process sends it.

The kernel limits the descriptors in sockets of all processes of a user, so another training can use up this limit. Then
the parent opens the descriptor in /proc.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing.popen_fork
import multiprocessing.resource_sharer
import multiprocessing.util
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

_KEY_BYTES = 8


def install() -> None:
    """Replace the functions of multiprocessing in this process and in the processes that it forks later."""
    multiprocessing.popen_fork.Popen = _Popen  # type: ignore[misc]
    multiprocessing.resource_sharer.DupFd = InheritedDescriptor  # type: ignore[misc, assignment]


class InheritedDescriptor:
    """A descriptor that can be pickled; the unpickled object returns a copy of the descriptor once.

    Only the process that created the object and its parent can take the descriptor.
    """

    def __init__(self, fd: int) -> None:
        self._owner = os.getpid()
        self._key = _sharer.add(os.dup(fd))

    def detach(self) -> int:
        """Return the descriptor. Raises EOFError if its process has ended."""
        if self._owner == os.getpid():
            return _sharer.take(self._key)
        if self._owner not in _channels:
            raise EOFError(f"process {self._owner} has ended, or is not a child of this process")
        return _channels[self._owner].request(self._key)


class _Sharer:
    """The descriptors that this process shares, and the socket to its parent."""

    def __init__(self, to_parent: socket.socket | None) -> None:
        self._to_parent = to_parent
        self._keys: Iterator[int] = itertools.count()
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        self._is_serving = False

    def add(self, fd: int) -> int:
        """Share a descriptor until it is taken, and return its key."""
        with self._lock:
            key = next(self._keys)
            self._descriptors[key] = fd
            if self._to_parent and not self._is_serving:
                self._is_serving = True
                threading.Thread(target=self._serve, args=(self._to_parent,), name="descriptors", daemon=True).start()
        return key

    def take(self, key: int) -> int:
        """Return the descriptor, which belongs to the caller from now on. Raises KeyError."""
        with self._lock:
            return self._descriptors.pop(key)

    def close(self) -> None:
        """Close the copies that a forked process has inherited."""
        for fd in self._descriptors.values():
            os.close(fd)
        if self._to_parent:
            self._to_parent.close()

    def _serve(self, parent: socket.socket) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with contextlib.suppress(OSError):  # the parent has ended
            while request := parent.recv(_KEY_BYTES):
                self._answer(parent, request)

    def _answer(self, parent: socket.socket, request: bytes) -> None:
        try:
            fd = self.take(int.from_bytes(request))
        except KeyError:
            parent.sendall(request)  # an answer without a descriptor
            return
        try:
            try:
                socket.send_fds(parent, [request], [fd])
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                parent.sendall(request + fd.to_bytes(_KEY_BYTES))
                parent.recv(_KEY_BYTES)  # the parent has opened the descriptor
        finally:
            os.close(fd)


class _Channel:
    """The socket to a forked process."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self._pid = pid
        self._connection = connection
        self._lock = threading.Lock()

    def request(self, key: int) -> int:
        """Return the descriptor with this key. Raises EOFError."""
        wanted = key.to_bytes(_KEY_BYTES)
        received: list[int] = []
        with self._lock, contextlib.suppress(OSError):  # the process has ended
            self._connection.sendall(wanted)
            answer, received, _, _ = socket.recv_fds(self._connection, 2 * _KEY_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            if name := answer[_KEY_BYTES:]:
                try:
                    received.append(os.open(f"/proc/{self._pid}/fd/{int.from_bytes(name)}", os.O_RDWR | os.O_CLOEXEC))
                finally:
                    self._connection.sendall(wanted)
        if not received:
            raise EOFError("the process that shares the descriptor has ended, or the descriptor was already taken")
        return received[0]

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()


class _Popen(multiprocessing.popen_fork.Popen):
    """Connects each process that multiprocessing forks. The connection is closed together with the process object."""

    def _launch(self, process_obj: Any) -> None:
        ours, _forking.to_parent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            super()._launch(process_obj)  # type: ignore[misc]
        finally:
            _forking.to_parent.close()
            _forking.to_parent = None
        channel = _channels[self.pid] = _Channel(self.pid, ours)
        multiprocessing.util.Finalize(self, _forget, (self.pid, channel))


class _Forking(threading.local):
    """The socket for the next process that this thread forks. The process inherits it."""

    to_parent: socket.socket | None = None


def _forget(pid: int, channel: _Channel) -> None:
    channel.close()
    if _channels.get(pid) is channel:  # a newer process can have the same ID
        del _channels[pid]


def _start_as_forked_process() -> None:
    global _sharer  # noqa: PLW0603 - one for each process
    _sharer.close()
    for channel in _channels.values():
        channel.close()
    _channels.clear()
    _sharer = _Sharer(_forking.to_parent)


_forking = _Forking()
_channels: dict[int, _Channel] = {}  # by process ID
_sharer = _Sharer(None)
os.register_at_fork(after_in_child=_start_as_forked_process)
