"""Starts a program in a network of its own: `python -I -S private_network.py PROGRAM ARGUMENT…`.

The network has only a loopback interface, so the program reaches no other process of this host and no other host. A
process can create it only while it has one thread, and the packages of a training start threads. Therefore this script
imports nothing else and then becomes the program.

Without the right to create a network, a user namespace gives this right. There, the user and the group are the same as
before. Some hosts forbid user namespaces; then the program starts without the variable PRIVATE_NETWORK. After every
other error, the program does not start, because a run could have caused the error. If the last arguments are
`--events-fd N`, the error is written to this descriptor as a report on the sandbox (trainer/training/wire.py).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys

PRIVATE_NETWORK = "TRAINER_PRIVATE_NETWORK"  # this variable is "1" for a program in a network of its own
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
# the kernel has no such namespace, or its settings, a security module or a container forbid it
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
_LIMITS = ("/proc/sys/user/max_user_namespaces", "/proc/sys/user/max_net_namespaces")
# gloo and NCCL choose an interface by these variables; the interfaces of the host do not exist here
_INTERFACES = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def enter_private_network() -> None:
    """Move this process into a network of its own. Raises OSError. The process must have one thread."""
    user, group = os.getuid(), os.getgid()
    try:
        _unshare(_CLONE_NEWNET)
    except PermissionError:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib would slow down every start
                file.write(content)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loopback:
        fcntl.ioctl(loopback, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def is_available() -> bool:
    """Return whether this host lets this user create a network. Only a forked process tries it.

    Raises OSError for every failure that does not mean that this host forbids it.
    """
    child = os.fork()
    if child == 0:
        _try()
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number == 0:
        return True
    if number in _FORBIDDEN or (number == errno.ENOSPC and _has_no_namespaces()):
        return False
    problem = os.strerror(number) if number > 0 else f"killed by signal {-number}"
    raise OSError(f"cannot create a network for the training process: {problem}")


def _try() -> None:
    """Exit with the number of the error, or 0."""
    number = errno.ENOMEM  # for an error without a number
    try:
        enter_private_network()
        number = 0
    except OSError as error:
        number = error.errno or number
    finally:
        os._exit(number)


def _has_no_namespaces() -> bool:
    """Return whether a setting of this host forbids all namespaces. The error is the same as for a limit that is used up."""
    for name in _LIMITS:
        with open(name) as limit:  # noqa: PTH123
            if int(limit.read()) == 0:
                return True
    return False


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _report(problem: str) -> None:
    import json  # imported here, because the import would slow down every start

    if sys.argv[-2] == "--events-fd":
        os.write(int(sys.argv[-1]), json.dumps({"kind": "sandbox", "problem": problem}).encode() + b"\n")


def main() -> None:
    """Become the program, in a network of its own unless this host forbids it."""
    try:
        # the first try is in another process, because a half-finished namespace could not be left again
        if is_available():
            enter_private_network()
            os.environ.update(_INTERFACES | {PRIVATE_NETWORK: "1"})
    except OSError as error:
        _report(str(error))
        sys.exit(f"error: {error}")
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
