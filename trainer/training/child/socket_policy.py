"""The sockets that a training process may open. Inherited sockets and pairs of connected sockets are always possible."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from trainer.core.ports import TrainingOrder
from trainer.sandbox.seccomp import Sockets

_GPU_DRIVERS = ("nvidiactl", "nvhost-ctrl", "nvmap", "dxg", "kfd")  # names in /dev
MPS = Path("/tmp/nvidia-mps")  # noqa: S108 - the pipes of NVIDIA's multi-process service

_EVERY_KIND = frozenset({socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET})


def sockets_for(order: TrainingOrder, devices: Path = Path("/dev"), mps: Path = MPS) -> Sockets:
    """Return the sockets for a training order on this host. Several ranks communicate over TCP.

    CUDA does not start without a Unix socket of the kind SEQPACKET, on which it listens. NCCL does not start without a
    datagram socket. A client of NVIDIA's multi-process service connects to the service over a stream socket, so all
    Unix sockets are possible on a host with this service.
    """
    is_shared = len(order.devices) > 1
    has_driver = any((devices / name).exists() for name in _GPU_DRIVERS)
    if not order.devices or not has_driver:
        return Sockets(tcp=is_shared)
    if _is_service(mps / "control"):
        return Sockets(tcp=is_shared, unix=_EVERY_KIND)
    kinds = {socket.SOCK_SEQPACKET, socket.SOCK_DGRAM} if is_shared else {socket.SOCK_SEQPACKET}
    return Sockets(tcp=is_shared, unix=frozenset(kinds))


def ephemeral_ports() -> range:
    """Return the ports that this kernel gives to a process that does not choose a port."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return range(int(first), int(last) + 1)


def _is_service(control: Path) -> bool:
    """Return whether the socket exists and belongs to root or this user. Other users could create it in /tmp."""
    try:
        found = control.lstat()
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid in (0, os.getuid())
