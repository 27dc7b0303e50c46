"""The program of the seccomp filter, executed by a small interpreter for both machines, and the sockets of an order."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.process.sandbox_host import order_for
from trainer.sandbox import seccomp
from trainer.sandbox.seccomp import Sockets
from trainer.sandbox.system_calls import ARCHITECTURES, numbers
from trainer.training.child.socket_policy import sockets_for

ALLOWED, REFUSED, MISSING = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
UNIX, INET, NETLINK = socket.AF_UNIX, socket.AF_INET, socket.AF_NETLINK
STREAM, DATAGRAM, PACKETS = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET


def decide(machine, name, *arguments, sockets=None, architecture=None):
    """Return the decision of the filter about a system call."""
    program = list(seccomp._program(machine, sockets or Sockets()))
    number = name if isinstance(name, int) else numbers(machine)[name]
    words = {0: number, 4: architecture or ARCHITECTURES[machine]}
    for index, value in enumerate(arguments):
        words |= {16 + 8 * index: value & 0xFFFFFFFF, 20 + 8 * index: value >> 32}
    position = accumulator = 0
    while True:
        step = program[position]
        assert step.if_true < 256 > step.if_false
        match step.code:
            case seccomp._LOAD:
                accumulator = words[step.operand]
            case seccomp._AND:
                accumulator &= step.operand
            case seccomp._EQUAL:
                position += step.if_true if accumulator == step.operand else step.if_false
            case seccomp._AT_LEAST:
                position += step.if_true if accumulator >= step.operand else step.if_false
            case seccomp._RETURN:
                return step.operand
        position += 1


machines = pytest.mark.parametrize("machine", list(ARCHITECTURES))


@machines
def test_decisions_by_arguments(machine):
    def of(*call):
        return decide(machine, *call)

    assert of("ptrace", 0) == REFUSED
    assert of("clone3", 0, 0) == MISSING
    assert of("clone", 0x01200011) == ALLOWED  # a fork
    assert of("clone", 0x003D0F00) == ALLOWED  # a thread
    assert [of("clone", 1 << bit) for bit in (17, 25, 26, 27, 28, 29, 30)] == 7 * [REFUSED]
    assert of("prlimit64", 0, 7, 0, 0) == ALLOWED
    assert of("prlimit64", 1, 7, 0, 0) == REFUSED
    assert of("setpriority", 0, 0, 5) == ALLOWED
    assert of("setpriority", 2, 0, 5) == REFUSED
    assert of("ioctl", 3, 0x5401) == ALLOWED
    assert of("ioctl", 3, 0x5412) == REFUSED
    assert of("ioctl", 3, 0x7_0000_5412) == REFUSED  # the kernel ignores the high half
    assert [of("ioctl", 3, request) for request in (0x40087602, 0xC0506617, 0x401C5820)] == 3 * [REFUSED]
    assert [of("ioctl", 3, request) for request in (0xC020462A, 0x30000001, 0xC0406400)] == 3 * [ALLOWED]  # of GPUs
    assert [of("sendto", 3, 0, 1, flags) for flags in (0x4000, 0x20004000)] == [ALLOWED, REFUSED]
    assert [of("sendmsg", 3, 0, flags) for flags in (0x4000, 0x20004000)] == [ALLOWED, REFUSED]
    assert [of("sendmmsg", 3, 0, 1, flags) for flags in (0x4000, 0x20004000)] == [ALLOWED, REFUSED]
    assert of("fcntl", 3, 2) == ALLOWED
    assert of("fcntl", 3, 1024) == REFUSED
    assert of(1) == ALLOWED
    assert of(0x40000001) == REFUSED
    assert decide(machine, 1, architecture=0x40000003) == REFUSED


@machines
def test_decisions_about_sockets(machine):
    def of(*arguments, sockets):
        return decide(machine, "socket", *arguments, sockets=sockets) == ALLOWED

    closed, tcp, gpu = Sockets(), Sockets(tcp=True), Sockets(unix=frozenset({PACKETS}))
    assert [of(INET, STREAM | 0x80800, 0, sockets=sockets) for sockets in (closed, tcp, gpu)] == [False, True, False]
    assert [of(UNIX, PACKETS | 0x80000, 0, sockets=sockets) for sockets in (closed, tcp, gpu)] == [False, False, True]
    assert not any(of(UNIX, kind, 0, sockets=sockets) for kind in (STREAM, DATAGRAM) for sockets in (closed, tcp, gpu))
    assert not any(of(INET, DATAGRAM, 0, sockets=sockets) for sockets in (closed, tcp, gpu))
    assert [of(NETLINK, 3, protocol, sockets=closed) for protocol in (0, 12)] == [True, False]
    assert [decide(machine, "connect", 3, 0, 0, sockets=sockets) for sockets in (closed, gpu)] == 2 * [REFUSED]
    assert decide(machine, "connect", 3, 0, 0, sockets=tcp) == ALLOWED
    assert [decide(machine, "socketpair", UNIX, kind, 0, 0) == ALLOWED for kind in (STREAM, PACKETS, DATAGRAM)] == [
        True, True, False,
    ]  # fmt: skip


def test_sockets_depend_on_gpus_and_services_of_this_host(tmp_path):
    devices, mps = tmp_path / "dev", tmp_path / "mps"
    devices.mkdir()
    mps.mkdir()

    def kinds(*gpus):
        found = sockets_for(order_for(tmp_path, devices=gpus), devices, mps)
        return found.unix, found.can_connect

    assert [kinds(), kinds(0), kinds(0, 1)] == [(set(), False), (set(), False), (set(), True)]
    (devices / "nvidiactl").touch()
    assert [kinds(), kinds(0), kinds(0, 1)] == [(set(), False), ({PACKETS}, False), ({PACKETS, DATAGRAM}, True)]
    (mps / "control").touch()
    assert kinds(0) == ({PACKETS}, False)
    (mps / "control").unlink()
    with socket.socket(UNIX) as service:
        service.bind(str(mps / "control"))
        assert kinds() == (set(), False)
        assert kinds(0) == ({PACKETS, STREAM, DATAGRAM}, True)
