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
    if mps_folder(mps):
        return Sockets(tcp=is_shared, unix=_EVERY_KIND)
    kinds = {socket.SOCK_SEQPACKET, socket.SOCK_DGRAM} if is_shared else {socket.SOCK_SEQPACKET}
    return Sockets(tcp=is_shared, unix=frozenset(kinds))


def ephemeral_ports() -> range:
    """Return the ports that this kernel gives to a process that does not choose a port."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return range(int(first), int(last) + 1)


def mps_folder(mps: Path = MPS) -> Path | None:
    """Return the folder of NVIDIA's multi-process service, or None if the service does not run.

    Other users could create the folder in /tmp, or a link to a folder of this user. So the folder and the socket in it
    must belong to root or this user.
    """
    try:
        folder, control = mps.lstat(), (mps / "control").lstat()
    except OSError:
        return None
    is_ours = all(found.st_uid in (0, os.getuid()) for found in (folder, control))
    return mps if is_ours and stat.S_ISDIR(folder.st_mode) and stat.S_ISSOCK(control.st_mode) else None
