"""What the kernel refuses to this process from now on, whatever code runs in it; there is no way back.

Landlock (Linux 5.13) closes files, signals and abstract sockets, a seccomp filter the network. Neither needs rights. The
files and signals are closed for the calling thread and for whatever it starts, so threads that must be confined have
to be started afterwards; the network is closed for every thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES_3 = 0x20080522  # the version of the call's structures
# what root keeps: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, IPC_LOCK, SYS_NICE, SYS_RESOURCE; not to see into other processes
_KEPT_CAPABILITIES = sum(1 << bit for bit in (0, 1, 3, 4, 14, 23, 24))

# rights of linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_MAKE_CHAR, _MAKE_BLOCK, _TRUNCATE = 1 << 6, 1 << 11, 1 << 14
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ = _READ_FILE | _READ_DIR
_NO_WRITING = _EXECUTE | _MAKE_CHAR | _MAKE_BLOCK
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1}  # by version; from the third on:
_ALL_FILE_RIGHTS = (1 << 15) - 1
_TCP_BIND_AND_CONNECT = 0b11  # from the fourth version on
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11  # from the sixth version on

# machine → its AUDIT_ARCH, the numbers of seccomp and socket
_MACHINES = {"x86_64": (0xC000003E, 317, 41), "aarch64": (0xC00000B7, 277, 198)}
_IO_URING_SETUP = 425  # a ring can open sockets without calling socket
_X32 = 0x40000000  # the other way to call the same functions on x86_64
_AF_UNIX, _AF_NETLINK = 1, 16
_ALLOW, _EACCES = 0x7FFF0000, 0x00050000 | 13
_EVERY_THREAD, _SPECULATION_AS_IT_WAS = 1, 4

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(OSError):
    """This kernel, or the container around us, has no such protection."""


def confine_files(
    *,
    write: Iterable[Path],
    read: Iterable[Path],
    run: Iterable[Path],
    names: Iterable[Path] = (),
    tcp: bool,
    samples: Sequence[Path] = (),
) -> None:
    """Leave the calling thread these trees and files, and no others; paths that are not there are passed over.

    `run` may be read and executed; below `names` folders may be listed. What is written cannot be executed. Without
    `tcp` its ports are closed, too. Raises `Refused`, and nothing is closed, when the kernel cannot do it or when one
    of the `samples` (files to read, folders to write into) would be lost: some network file systems do that.
    """
    version = _call(_CREATE_RULESET, None, 0, 1)
    everything = _FILE_RIGHTS.get(version, _ALL_FILE_RIGHTS)
    network = _TCP_BIND_AND_CONNECT if version >= 4 and not tcp else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    attributes = struct.pack("=QQQ", everything, network, scopes)
    rules = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        writable = tuple(write)
        for paths, rights in (
            (writable, everything & ~_NO_WRITING),
            (read, _READ),
            (run, _READ | _EXECUTE),
            (names, _READ_DIR),
        ):
            for path in paths:
                _allow(rules, path, rights & everything)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _rehearse(rules, writable, samples)
        _call(_RESTRICT_SELF, rules, 0)
        _drop_capabilities()
    finally:
        os.close(rules)


def close_network() -> None:
    """No socket but of this host's files and of the kernel can be made any more, by any thread. Raises `Refused`."""
    if platform.machine() not in _MACHINES:
        raise Refused(0, f"no filter for {platform.machine()}")
    architecture, seccomp, socket = _MACHINES[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    steps = (
        # (code, steps to skip if true, if false, operand); the end is EACCES, before it ALLOW
        (load, 0, 0, 4),
        (equal, 0, 8, architecture),
        (load, 0, 0, 0),
        (at_least, 6, 0, _X32),
        (equal, 5, 0, _IO_URING_SETUP),
        (equal, 0, 3, socket),
        (load, 0, 0, 16),
        (equal, 1, 0, _AF_UNIX),
        (equal, 0, 1, _AF_NETLINK),
        (give, 0, 0, _ALLOW),
        (give, 0, 0, _EACCES),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if _call(seccomp, 1, _EVERY_THREAD | _SPECULATION_AS_IT_WAS, program):
        raise Refused(0, "a thread has a filter of its own")


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there, or not to be reached, is none of our business
    try:
        rights &= -1 if path.is_dir() else _OF_FILES
        _call(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _rehearse(rules: int, writable: Sequence[Path], samples: Sequence[Path]) -> None:
    """Confine a thread that does nothing else but try whether what has to work still does."""
    samples = [path for path in samples if os.access(path, os.W_OK if path in writable else os.R_OK)]
    failures: list[OSError] = []

    def rehearsal() -> None:
        try:
            _call(_RESTRICT_SELF, rules, 0)
            for path in samples:
                if path in writable:
                    tempfile.TemporaryFile(dir=path).close()
                else:
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=rehearsal, name="rehearsal")
    thread.start()
    thread.join()
    if failures:
        raise Refused(failures[0].errno, f"{failures[0].strerror}: {failures[0].filename}")


def _drop_capabilities() -> None:
    header, sets = struct.pack("=Ii", _CAPABILITIES_3, 0), ctypes.create_string_buffer(24)
    _libc.capget(header, sets)
    # effective, permitted, inheritable: each as a low word, then each as a high one
    low, high = struct.unpack("=3I", sets.raw[:12]), 3 * (0,)
    _libc.capset(header, struct.pack("=6I", *(word & _KEPT_CAPABILITIES for word in low), *high))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise Refused(ctypes.get_errno(), f"prctl {option}")


def _call(number: int, *arguments: object) -> int:
    # variadic: each integer has to be as wide as a register
    wide = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise Refused(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
