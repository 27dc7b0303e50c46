"""Starts a program in a network of its own: `python -I -S private_network.py PROGRAM ARGUMENT…`.

The network has only a loopback interface, so the program reaches no other process of this host and no other host. A
process can create it only while it has one thread, and the packages of a training start threads. Therefore this script
imports nothing else and then becomes the program.

Without the right to create a network, a user namespace gives this right. There, the user and the group are the same as
before. Some hosts forbid user namespaces; then the program starts without the variable PRIVATE_NETWORK.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

PRIVATE_NETWORK = "TRAINER_PRIVATE_NETWORK"  # this variable is "1" for a program in a network of its own
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
# gloo and NCCL choose an interface by these variables; a choice for the network of the host would not exist here
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
    """Return whether this host lets this user create a network. Only a forked process tries it."""
    child = os.fork()
    if child == 0:
        try:
            enter_private_network()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    """Become the program, in a network of its own if this is possible."""
    # the first try is in another process, because a half-finished namespace could not be left again
    if is_available():
        enter_private_network()
        os.environ.update(_INTERFACES | {PRIVATE_NETWORK: "1"})
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
