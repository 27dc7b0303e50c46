"""Restricts the files that a process can use with Landlock. No code in the process can undo the restrictions.

Landlock (Linux 5.13) needs no privileges. It also restricts signals and abstract sockets. It applies to the calling
thread and to the threads and processes that it starts afterwards, so start other threads later. The sandbox has a
second part: seccomp.py refuses system calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_END_OF_THREAD = 1.0  # seconds

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system call numbers, the same on every architecture
PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES_3 = 0x20080522  # version of the structures of capget and capset
# capabilities that root keeps: DAC_OVERRIDE, FOWNER, IPC_LOCK
_KEPT_CAPABILITIES = sum(1 << bit for bit in (1, 3, 14))

# rights of linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_MAKE_CHAR, _MAKE_SOCKET, _MAKE_PIPE, _MAKE_BLOCK, _MAKE_LINK, _REFER, _TRUNCATE = (
    1 << bit for bit in (6, 9, 10, 11, 12, 13, 14)
)
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ = _READ_FILE | _READ_DIR
_NO_WRITING = _EXECUTE | _MAKE_CHAR | _MAKE_BLOCK
_NO_FILLING = _NO_WRITING | _MAKE_SOCKET | _MAKE_PIPE | _MAKE_LINK | _REFER
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1}  # for versions 1 and 2 of Landlock
_ALL_FILE_RIGHTS = (1 << 15) - 1  # from version 3
_TCP_VERSION, _BIND, _CONNECT = 4, 0b01, 0b10  # rights of TCP ports, from this version
_PATH, _PORT = 1, 2  # kinds of rules
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11  # from version 6

_UNAVAILABLE = (errno.ENOSYS, errno.EOPNOTSUPP)  # not built into this kernel, or disabled at its start
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)  # a path that cannot be reached

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxUnavailable(OSError):
    """This kernel has no Landlock or no seccomp. Every other error is a plain OSError, so that no run continues after it."""


@dataclass(frozen=True, kw_only=True)
class AccessPolicy:
    """Files and folder trees by permission; missing paths are ignored.

    Files in `run` can be read and executed. In `fill`, only regular files and folders can be created. In `unlisted`,
    files can be written and read by those who know their names. Folders in `names` can be listed. `samples` are some of
    the files to read and folders to write to, for a test before the sandbox is entered.
    """

    write: tuple[Path, ...] = ()
    fill: tuple[Path, ...] = ()
    unlisted: tuple[Path, ...] = ()
    read: tuple[Path, ...] = ()
    run: tuple[Path, ...] = ()
    names: tuple[Path, ...] = ()
    samples: tuple[Path, ...] = ()


def confine_files(policy: AccessPolicy, *, tcp: bool, ports: range | None = None) -> None:
    """Restrict the calling thread to the policy. Files that the process writes cannot be executed.

    If `tcp` is False, TCP ports are also closed. If `ports` are given, TCP can connect only to these ports, of any host.
    Raises `SandboxUnavailable` if the kernel has no Landlock. Raises OSError if this process has another thread, which
    would stay unrestricted; if a sample would become unusable, which happens on some network file systems; and for every
    other failure.
    """
    if others := other_threads():
        raise OSError(errno.EBUSY, f"threads that the sandbox would not restrict: {', '.join(others)}")
    version = landlock_version()
    everything = _FILE_RIGHTS.get(version, _ALL_FILE_RIGHTS)
    network = 0 if version < _TCP_VERSION or (tcp and ports is None) else _CONNECT if tcp else _BIND | _CONNECT
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    attributes = struct.pack("=QQQ", everything, network, scopes)
    rules = call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for paths, rights in (
            (policy.write, everything & ~_NO_WRITING),
            (policy.fill, everything & ~_NO_FILLING),
            (policy.unlisted, everything & ~_NO_WRITING & ~_READ_DIR),
            (policy.read, _READ),
            (policy.run, _READ | _EXECUTE),
            (policy.names, _READ_DIR),
        ):
            for path in paths:
                _allow(rules, path, rights & everything)
        for port in ports or () if network else ():
            call(_ADD_RULE, rules, _PORT, struct.pack("=QQ", _CONNECT, port), 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        _test_in_thread(rules, policy)
        call(_RESTRICT_SELF, rules, 0)
        _drop_capabilities()
    finally:
        os.close(rules)


def landlock_version() -> int:
    """Return the version of Landlock in this kernel. Raises `SandboxUnavailable` or OSError."""
    return call(_CREATE_RULESET, None, 0, 1)


def other_threads() -> list[str]:
    """Return the names of all threads of this process except the first. An ended thread has 1 s to disappear."""
    deadline = time.monotonic() + _END_OF_THREAD
    while (ids := _thread_ids() - {os.getpid()}) and time.monotonic() < deadline:
        time.sleep(0.001)
    names = []
    for thread in ids:
        with contextlib.suppress(OSError):  # the thread has ended
            names.append(Path(f"/proc/self/task/{thread}/comm").read_text().strip())
    return sorted(names)


def _thread_ids() -> set[int]:
    return set(map(int, os.listdir("/proc/self/task")))  # noqa: PTH208


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise  # without its rule, the training would fail later with a misleading error
    try:
        rights &= -1 if path.is_dir() else _OF_FILES
        call(_ADD_RULE, rules, _PATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _test_in_thread(rules: int, policy: AccessPolicy) -> None:
    """Apply the rules to a temporary thread and check there that the samples still work."""
    samples = [
        path
        for path in policy.samples
        # a dataset can contain a socket or a pipe, which cannot be opened like a file
        if (path.is_file() or path.is_dir()) and os.access(path, os.W_OK if path in policy.write else os.R_OK)
    ]

    def attempt() -> None:
        call(_RESTRICT_SELF, rules, 0)
        for path in samples:
            if path in policy.write:
                tempfile.TemporaryFile(dir=path).close()
            else:
                with contextlib.suppress(FileNotFoundError):  # another process has removed it
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    with ThreadPoolExecutor(1) as temporary:
        temporary.submit(attempt).result()


def _drop_capabilities() -> None:
    header, sets = struct.pack("=Ii", _CAPABILITIES_3, 0), ctypes.create_string_buffer(24)
    if _libc.capget(header, sets) != 0:
        raise _error("capget")
    # three low words (effective, permitted, inheritable), then three high words
    before = struct.unpack("=6I", sets.raw)
    after = (*(word & _KEPT_CAPABILITIES for word in before[:3]), 0, 0, 0)
    # without a capability, there is nothing to drop: a container or a unit may refuse the call
    if after != before and _libc.capset(header, struct.pack("=6I", *after)) != 0:
        raise _error("capset")


def prctl(option: int, value: int) -> None:
    """Set a property of this process. Raises `SandboxUnavailable` or OSError."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise _error(f"prctl {option}")


def call(number: int, *arguments: object) -> int:
    """Return the result of a system call. Raises `SandboxUnavailable` or OSError."""
    # syscall is a variadic function: each integer must be as wide as a register
    wide = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise _error(f"system call {number}")
    return int(result)


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return (SandboxUnavailable if number in _UNAVAILABLE else OSError)(number, f"{os.strerror(number)} ({what})")
