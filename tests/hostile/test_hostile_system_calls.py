"""System calls with which code in a training process could leave the sandbox or disturb the service."""

from __future__ import annotations

import errno
import os
import platform
import resource
import socket
import stat

import pytest

from tests.process.sandbox_host import needs_landlock, order_for, sandbox_host
from trainer.sandbox.system_calls import PROCESSES, numbers

pytestmark = needs_landlock

# the last line raises the error of the call, because ctypes does not
CALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(ctypes.c_long({number}), {arguments}) < 0:
    raise OSError(ctypes.get_errno(), 'system call')
"""
NUMBERS = numbers(platform.machine())
WITH_ARGUMENTS = ("clone", "socket", "socketpair", "ioctl", "fcntl", "seccomp")
OTHER_PROCESS = "__import__('os').getppid()"


@pytest.fixture
def host(tmp_path):
    return sandbox_host(tmp_path, tmp_path / "home")


def raw(name, *arguments):
    return CALL.format(number=NUMBERS[name], arguments=", ".join(map(str, arguments)) or "0")


def refused(host, *snippets, **order):
    """Return the snippets that did not fail with PermissionError."""
    results = host.execute(*snippets, **order)
    assert not results["missing"]
    return {code: outcome for code, outcome in results["results"].items() if outcome != "PermissionError"}


def test_each_system_call_of_the_table_is_refused(host):
    """Without the filter, these calls fail with another error, because their arguments are invalid."""
    names = NUMBERS.keys() - PROCESSES - {*WITH_ARGUMENTS, "clone3"}
    snippets = {name: raw(name, *6 * [-1]) for name in names}

    assert refused(host, *snippets.values()) == {}
    assert len(snippets) > 80


def test_clone3_is_reported_as_missing(host):
    code = raw("clone3", -1, 0) if "clone3" in NUMBERS else ""
    check = f"try:\n  exec({code!r})\nexcept OSError as error:\n  assert error.errno == {errno.ENOSYS}\nelse:\n  1 / 0"

    assert host.results_of([check]) == {"done"}


def test_limits_and_priorities_of_other_processes_cannot_be_changed(host):
    before = resource.prlimit(os.getpid(), resource.RLIMIT_CORE)
    snippets = [
        f"import os, resource; resource.prlimit(os.getppid(), {resource.RLIMIT_CORE}, (3, 3))",
        "import os; os.sched_setaffinity(os.getppid(), {0})",
        "import os; os.sched_setscheduler(os.getppid(), os.SCHED_BATCH, os.sched_param(0))",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        # the user of the service and the group of this process
        "import os; os.setpriority(os.PRIO_USER, 0, 19)",
        "import os; os.setpriority(os.PRIO_PGRP, 0, 19)",
        raw("ioprio_set", 3, 0, 0),
        raw("process_madvise", -1, 0, 0, 0, 0),
    ]

    assert refused(host, *snippets) == {}
    assert resource.prlimit(os.getpid(), resource.RLIMIT_CORE) == before


def test_own_limits_and_priority_can_be_changed(host):
    code = "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.nice(1); "
    code += "os.sched_setaffinity(0, os.sched_getaffinity(0)); resource.prlimit(0, resource.RLIMIT_NOFILE)"

    assert host.results_of([code]) == {"done"}


@pytest.mark.skipif(os.geteuid() != 0, reason="another user has limits for these priorities")
def test_root_cannot_raise_its_priority_above_the_service(host):
    snippets = [
        "import os; os.nice(-1)",
        "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    ]
    results = host.execute(*snippets)["results"]

    assert list(results.values()) == ["PermissionError"] * 2


def test_attributes_of_readable_files_cannot_be_changed(host):
    file = host.root / "images_of_user" / "1.png"
    before = file.stat()
    names = [repr(str(file)), f"'/proc/self/fd/' + str(os.open({str(file)!r}, os.O_RDONLY))"]
    snippets = [
        f"import os; os.{call}"
        for name in names
        for call in (
            f"chmod({name}, 0o777)",
            f"chown({name}, os.getuid(), os.getgid())",
            f"utime({name}, (0, 0))",
            f"setxattr({name}, 'user.x', b'x')",
            f"removexattr({name}, 'user.x')",
        )
    ]
    opened = f"import os, fcntl; fd = os.open({str(file)!r}, os.O_RDONLY); "
    snippets += [
        opened + "os.fchmod(fd, 0o777)",
        opened + "os.utime(fd, (0, 0))",
        opened + "fcntl.ioctl(fd, 0x40086602, bytes(8))",  # FS_IOC_SETFLAGS
        opened + "fcntl.ioctl(fd, 0x401C5820, bytes(28))",  # FS_IOC_FSSETXATTR
        opened + "fcntl.ioctl(fd, 0x40087602, bytes(8))",  # FS_IOC_SETVERSION, which sets the change time
        opened + "fcntl.ioctl(fd, 0x40086604, bytes(8))",  # EXT4_IOC_SETVERSION
        "import os, fcntl; fcntl.ioctl(os.open('/usr', os.O_RDONLY), 0x800C6613, bytes(12))",  # FS_IOC_SET_ENCRYPTION_POLICY
        "import os, fcntl; fcntl.ioctl(os.open('/usr', os.O_RDONLY), 0x5000940E, bytes(1000))",  # BTRFS_IOC_SUBVOL_CREATE
        opened + "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
        "import os, fcntl; fcntl.fcntl(os.open('/usr', os.O_RDONLY), fcntl.F_NOTIFY, 1)",
    ]

    assert refused(host, *snippets) == {}
    after = file.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert stat.S_IMODE(after.st_mode) != 0o777


def test_files_can_be_copied_without_attributes(host):
    copy = f"shutil.copy2({str(host.root / 'images_of_user' / '1.png')!r}, {str(host.order.run_dir / 'copy.png')!r})"
    prepared = "from trainer.sandbox.file_attributes import copy_without_attributes as prepare; prepare(); "

    results = host.execute(f"import shutil; {copy}", f"import shutil; {prepared}{copy}")["results"]

    assert list(results.values()) == ["PermissionError", "done"]
    assert (host.order.run_dir / "copy.png").read_text() == "content"


def test_files_of_others_cannot_be_watched(host):
    watch = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); "
    watch += f"fd = libc.inotify_init(); libc.inotify_add_watch(fd, {str(host.root / 'queue.db').encode()!r}, 0xFFF) >= 0 or "
    watch += "(_ for _ in ()).throw(OSError(ctypes.get_errno(), 'inotify'))"

    assert refused(host, watch, raw("inotify_init1", 0)) == {}


def test_namespaces_keys_and_shared_memory_are_refused(host):
    new_user, new_net, new_mount = 0x10000000, 0x40000000, 0x00020000
    snippets = [
        raw("unshare", new_user | new_net),
        raw("unshare", new_mount),
        raw("clone", new_user | 17, 0, 0, 0, 0),
        raw("keyctl", 0, -3, 1),
        raw("shmget", 0, 4096, 0o1600),
        raw("msgget", 0, 0o1600),
        raw("semget", 0, 1, 0o1600),
        raw("ptrace", 16, OTHER_PROCESS, 0, 0),
        raw("process_vm_readv", OTHER_PROCESS, 0, 0, 0, 0, 0),
        raw("userfaultfd", 1),
        raw("perf_event_open", 0, 0, -1, -1, 0),
    ]

    assert refused(host, *snippets) == {}


def test_processes_and_threads_can_be_started(host):
    code = "import os, subprocess, threading, multiprocessing; subprocess.run(['true'], check=True); "
    code += "t = threading.Thread(target=print); t.start(); t.join(); "
    code += "p = multiprocessing.get_context('fork').Process(target=str); p.start(); p.join(); assert p.exitcode == 0"

    assert host.results_of([code]) == {"done"}


@pytest.mark.parametrize("devices", [(), (0, 1)], ids=["one process", "several ranks"])
def test_socket_files_cannot_be_reached(host, devices, tmp_path):
    """A service behind a socket file would trust the user of the training: tmux, Docker, systemd, PostgreSQL."""
    with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        stream.bind(str(tmp_path / "stream"))
        stream.listen()
        datagrams.bind(str(tmp_path / "datagrams"))
        name, other = str(tmp_path / "stream"), str(tmp_path / "datagrams")
        pair = "import socket; a, b = socket.socketpair(socket.AF_UNIX, socket.{0}); "
        snippets = [
            f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})",
            f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', {other!r})",
            "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
            pair.format("SOCK_DGRAM") + f"a.sendto(b'x', {other!r})",
        ]
        ways = [
            pair.format(kind) + f"a.{way}"
            for kind in ("SOCK_STREAM", "SOCK_SEQPACKET")
            for way in (f"connect({name!r})", f"sendto(b'x', {other!r})", f"sendmsg([b'x'], [], 0, {other!r})")
        ]
        order = order_for(host.root, devices=devices)

        assert refused(host, *snippets, order=order) == {}
        host.execute(*ways, order=order)
        stream.setblocking(False)
        datagrams.setblocking(False)
        for reach in (stream.accept, lambda: datagrams.recv(1)):
            with pytest.raises(BlockingIOError):
                reach()


@pytest.mark.parametrize("devices", [(), (0, 1)], ids=["one process", "several ranks"])
def test_other_kinds_of_sockets_are_refused(host, devices):
    snippets = [
        f"import socket; socket.socket({family}, {kind}, {protocol})"
        for family, kind, protocol in (
            (socket.AF_INET, socket.SOCK_DGRAM, 0),
            (socket.AF_INET6, socket.SOCK_DGRAM, 0),
            (socket.AF_INET, socket.SOCK_RAW, 1),
            (socket.AF_INET, socket.SOCK_STREAM, 132),  # SCTP
            (socket.AF_PACKET, socket.SOCK_RAW, 0),
            (socket.AF_NETLINK, socket.SOCK_RAW, 12),  # NETLINK_NETFILTER
            (socket.AF_NETLINK, socket.SOCK_RAW, 9),  # NETLINK_AUDIT
            (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
            (38, socket.SOCK_SEQPACKET, 0),  # AF_ALG
        )
    ]

    assert refused(host, *snippets, order=order_for(host.root, devices=devices)) == {}
