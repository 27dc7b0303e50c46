"""Refuses system calls with which a process could leave the sandbox, in every thread, by a seccomp filter.

Landlock (landlock.py) decides about files. This filter closes the ways around it: sockets, other processes, attributes
of files, namespaces, shared memory with a number. A refused call fails with EPERM. The filter cannot be removed, and
each process that is started later has it, too. Other system calls are not changed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import platform
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from trainer.sandbox.landlock import PR_SET_NO_NEW_PRIVS, SandboxUnavailable, call, prctl
from trainer.sandbox.system_calls import ARCHITECTURES, PROCESSES, numbers

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # instructions of BPF
_ALLOW, _REFUSE, _MISSING = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_X32 = 0x40000000  # second set of system call numbers on x86_64
_SET_FILTER, _ACTION_AVAILABLE = 1, 2  # operations of seccomp
_EVERY_THREAD, _ALLOW_SPECULATION = 1, 4

_CLONE_THREAD = 0x10000
_NEW_NAMESPACES = 0x7E020000  # the flags CLONE_NEW* of `clone`
_KIND = 0xF  # the kind of a socket, without the flags SOCK_NONBLOCK and SOCK_CLOEXEC
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX type into a terminal
# types of requests to file systems. Some of them change a file that is open only for reading: its flags, version (and so
# its change time), encryption, or the subvolumes in a folder
_FILE_SYSTEM_TYPES = (ord("f"), ord("v"), ord("X"), 0x94)
_FAST_OPEN = 0x20000000  # a flag: connect while sending. Landlock does not see this connection


@dataclass(frozen=True, kw_only=True)
class Sockets:
    """The sockets that a confined process can open. A pair of connected Unix sockets is always possible.

    `tcp` allows TCP over IPv4 and IPv6. `unix` are the kinds of Unix sockets, which can be connected only if `tcp` or
    stream sockets are allowed.
    """

    tcp: bool = False
    unix: frozenset[socket.SocketKind] = frozenset()

    @property
    def can_connect(self) -> bool:
        """True if `connect` is allowed. The filter cannot see the peer."""
        return self.tcp or socket.SOCK_STREAM in self.unix


@dataclass(frozen=True)
class _Is:
    """A condition: the low 32 bits of an argument, with the mask, have this value."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF

    def steps(self, *, otherwise: int) -> list[_Step]:
        """Skip the next `otherwise` steps if the condition is not true."""
        load = _Step(_LOAD, 16 + 8 * self.argument)  # the offset of the argument; both machines are little-endian
        masked = [] if self.mask == 0xFFFFFFFF else [_Step(_AND, self.mask)]
        return [load, *masked, _Step(_EQUAL, self.value, if_false=otherwise)]


@dataclass(frozen=True)
class _Step:
    """An instruction of BPF. The jumps are numbers of steps to skip."""

    code: int
    operand: int
    if_true: int = 0
    if_false: int = 0


_Pattern = tuple[_Is, ...]

_ONLY_OWN: Mapping[str, list[_Pattern]] = {
    # process 0 is the caller; to other processes, limits and priorities would be a way to disturb the service
    **{
        name: [(_Is(0, 0),)]
        for name in (
            "prlimit64", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity",
            "migrate_pages", "move_pages",
        )
    },
    "setpriority": [(_Is(0, 0), _Is(1, 0))],  # PRIO_PROCESS
    "ioprio_set": [(_Is(0, 1), _Is(1, 0))],  # IOPRIO_WHO_PROCESS
    "clone": [(_Is(0, 0, _NEW_NAMESPACES),)],
    # a pair of datagram sockets could be connected to another peer
    "socketpair": [
        (_Is(0, socket.AF_UNIX), _Is(1, kind, _KIND)) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    ],
}  # fmt: skip
_REFUSED_REQUESTS: Mapping[str, list[_Pattern]] = {
    "ioctl": [
        *((_Is(1, request),) for request in _TERMINAL_INPUT),
        *((_Is(1, kind << 8, 0xFF00),) for kind in _FILE_SYSTEM_TYPES),
    ],
    "sendto": [(_Is(3, _FAST_OPEN, _FAST_OPEN),)],
    "sendmsg": [(_Is(2, _FAST_OPEN, _FAST_OPEN),)],
    "sendmmsg": [(_Is(3, _FAST_OPEN, _FAST_OPEN),)],
    "fcntl": [(_Is(1, command),) for command in (fcntl.F_SETLEASE, fcntl.F_NOTIFY)],
}
_ALWAYS_ALLOWED = ("seccomp",)  # the table has its number only for this module


def restrict_system_calls(sockets: Sockets | None) -> None:
    """Refuse the system calls of the table from now on, in every thread. Raises `SandboxUnavailable` or OSError.

    If `sockets` is None, the process can open no socket, start no process or program, send no signal, and reserve no
    disk space without writing.
    """
    machine = _machine()
    steps = list(_program(machine, sockets))
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", step.code, step.if_true, step.if_false, step.operand) for step in steps)
    )
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if call(numbers(machine)["seccomp"], _SET_FILTER, _EVERY_THREAD | _ALLOW_SPECULATION, program):
        raise OSError(errno.EBUSY, "a thread has a different seccomp filter")


def require_seccomp() -> None:
    """Raise `SandboxUnavailable` if this kernel or this module has no filter for this machine, or OSError."""
    refuse = ctypes.byref(ctypes.c_uint32(_REFUSE & 0xFFFF0000))
    call(numbers(_machine())["seccomp"], _ACTION_AVAILABLE, 0, refuse)


def _machine() -> str:
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise SandboxUnavailable(errno.ENOSYS, f"no seccomp filter for {machine}")
    return machine


def _program(machine: str, sockets: Sockets | None) -> Iterator[_Step]:
    allowed = {**_ONLY_OWN, "socket": list(_socket_patterns(sockets)) if sockets else []}
    if sockets is None:
        allowed["clone"] = [(_Is(0, _CLONE_THREAD, _CLONE_THREAD | _NEW_NAMESPACES),)]
    yield _Step(_LOAD, 4)  # the architecture
    yield _Step(_EQUAL, ARCHITECTURES[machine], if_true=1)
    yield _Step(_RETURN, _REFUSE)
    yield _Step(_LOAD, 0)  # the number of the system call
    yield _Step(_AT_LEAST, _X32, if_false=1)
    yield _Step(_RETURN, _REFUSE)
    for name, number in numbers(machine).items():
        if name in _ALWAYS_ALLOWED or (sockets and (name in PROCESSES or (name == "connect" and sockets.can_connect))):
            continue
        if name in allowed:
            decision = _decide(allowed[name], match=_ALLOW, otherwise=_REFUSE)
        elif name in _REFUSED_REQUESTS:
            decision = _decide(_REFUSED_REQUESTS[name], match=_REFUSE, otherwise=_ALLOW)
        else:
            # glibc then uses `clone`, whose flags the filter can see
            decision = [_Step(_RETURN, _MISSING if name == "clone3" else _REFUSE)]
        yield _Step(_EQUAL, number, if_false=len(decision))
        yield from decision
    yield _Step(_RETURN, _ALLOW)


def _decide(patterns: Iterable[_Pattern], *, match: int, otherwise: int) -> list[_Step]:
    """Return steps that end with `match` if all conditions of a pattern are true, else with `otherwise`."""
    steps: list[_Step] = []
    for pattern in patterns:
        attempt = [_Step(_RETURN, match)]
        for condition in reversed(pattern):
            attempt = condition.steps(otherwise=len(attempt)) + attempt
        steps += attempt
    return [*steps, _Step(_RETURN, otherwise)]


def _socket_patterns(sockets: Sockets) -> Iterator[_Pattern]:
    # name resolution and NCCL read the interfaces of the host from the kernel
    yield (_Is(0, socket.AF_NETLINK), _Is(2, socket.NETLINK_ROUTE))
    for kind in sorted(sockets.unix):
        yield (_Is(0, socket.AF_UNIX), _Is(1, kind, _KIND))
    if sockets.tcp:
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol in (0, socket.IPPROTO_TCP):
                yield (_Is(0, family), _Is(1, socket.SOCK_STREAM, _KIND), _Is(2, protocol))
