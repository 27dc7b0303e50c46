"""Small disks that fail on request: full, without inodes, over their quota, read-only. They need root.

with Disk("quota", folder) as disk:
… disk.place …
disk.fail()        all writes fail from now on, including writes to open files
disk.restore()     the disk is writable again

`PowerCut(folder)` is a disk that loses its power: call `fail` when no process uses it, then `restore`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from tests.mounts import unmounted_afterwards

MIB = 2**20
KINDS = ("full", "no inodes", "quota", "read-only")
# messages of the operating system or of the service
MESSAGES = {
    "full": f"{os.strerror(errno.ENOSPC)}|disk is full",
    "no inodes": f"{os.strerror(errno.ENOSPC)}|disk is full",
    "quota": f"{os.strerror(errno.EDQUOT)}|disk quota is used up",
    "read-only": os.strerror(errno.EROFS),
}
FIRST_SUBVOLUME = 256  # the lowest subvolume ID of btrfs
GIB_AND_A_HALF = 1536  # MiB: a dataset keeps one GiB in reserve
SHUT_DOWN, WITHOUT_FLUSH = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, and its flag NOLOGFLUSH


class DiskUnavailable(Exception):
    """This machine cannot create the disk."""


class Disk:
    """A file system in a sparse file, mounted at `place`."""

    def __init__(self, kind: str, place: Path, mebibytes: int = GIB_AND_A_HALF) -> None:
        self.kind = kind
        self.place = place
        self._mebibytes = mebibytes
        self._type = "btrfs" if kind == "quota" else "ext4"
        self._image = place.with_name(f"{place.name}.img")
        self._whole = place.with_name(f"{place.name}.whole") if kind == "quota" else place
        self._fillers: list[Path] = []

    def __enter__(self) -> Self:
        if self._type not in Path("/proc/filesystems").read_text().split():
            raise DiskUnavailable(f"this kernel does not support {self._type}")
        for place in {self.place, self._whole}:
            place.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._mebibytes * MIB)
        few_inodes = ["-N", "300"] if self.kind == "no inodes" else []
        _run(f"mkfs.{self._type}", "-q", *few_inodes, *(["-m", "0"] if self._type == "ext4" else []), self._image)
        with ExitStack() as opened:
            opened.callback(self._image.unlink, missing_ok=True)
            opened.enter_context(unmounted_afterwards(self.place, *({self._whole} - {self.place})))
            self._mount()
            if self.kind == "quota":
                _run("btrfs", "subvolume", "create", self._whole / "limited")
                _run("btrfs", "quota", "enable", self._whole)
                _run("mount", "--bind", self._whole / "limited", self.place)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def fail(self) -> None:
        if self.kind == "quota":
            self._limit("1")
        elif self.kind == "read-only":
            _run("mount", "-o", "remount,abort", self.place)  # as the kernel does after a device error
        elif self.kind == "full":
            self._fill()
        else:
            self._use_up_inodes()

    def restore(self) -> None:
        if self.kind == "quota":
            self._limit("none")
        elif self.kind == "read-only":
            _run("umount", self.place)
            _run("e2fsck", "-fy", self._image, accept=(0, 1))
            self._mount()
        for filler in self._fillers:
            filler.unlink()
        self._fillers.clear()

    def _mount(self) -> None:
        options = "loop,errors=remount-ro" if self.kind == "read-only" else "loop"
        _run("mount", "-o", options, self._image, self._whole)

    def _limit(self, number_of_bytes: str) -> None:
        # set on the whole file system, because removing a limit also needs space
        _run("btrfs", "qgroup", "limit", number_of_bytes, f"0/{FIRST_SUBVOLUME}", self._whole)

    def _fill(self) -> None:
        self._fillers.append(self.place / "filler")
        with self._fillers[0].open("wb", buffering=0) as file:
            for piece in (64 * MIB, MIB, 4096):
                with suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), piece)

    def _use_up_inodes(self) -> None:
        with suppress(OSError):
            while True:
                filler = self.place / f"filler_{len(self._fillers)}"
                filler.touch()
                self._fillers.append(filler)


class PowerCut(Disk):
    """An ext4 file system, mounted with its defaults, that loses its power and is mounted again.

    Before the power cut, `fail` commits the journal of ext4, as the kernel does every five seconds. So file names are
    kept, but files that were not synced are empty.
    """

    def __init__(self, place: Path, mebibytes: int = GIB_AND_A_HALF) -> None:
        super().__init__("power cut", place, mebibytes)

    def fail(self) -> None:
        """Cut the power. Before this, kill all processes that use the disk, because a power cut also ends them."""
        commit = self.place / ".commit"
        with commit.open("wb") as file:
            os.fsync(file.fileno())
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", WITHOUT_FLUSH))
        except OSError as error:
            raise DiskUnavailable(f"this kernel cannot shut down ext4: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def restore(self) -> None:
        """Mount the disk again, which replays its journal."""
        _run_with_retries("umount", self.place)
        self._mount()
        (self.place / ".commit").unlink()


class HostDisk(PowerCut):
    """The only disk of a host. It can also be full for a while, or read-only until the host is restarted."""

    def __init__(self, place: Path, mebibytes: int = 8 * 1024) -> None:
        super().__init__(place, mebibytes)

    def sync(self) -> None:
        """Write everything to the disk now."""
        _run("sync", "-f", self.place)

    def fill(self) -> None:
        self._fill()

    def free(self) -> None:
        self._fillers.pop().unlink()

    def turn_read_only(self) -> None:
        """Make the disk read-only, as the kernel does after a device error."""
        _run("mount", "-o", "remount,abort", self.place)

    def repair(self) -> None:
        """Check the file system and mount it again. Before that, kill the processes that use it."""
        _run_with_retries("umount", self.place)
        _run("e2fsck", "-fy", self._image, accept=(0, 1))
        self._mount()


def _run_with_retries(*command: object, seconds: float = 10.0) -> None:
    """Run a command, and repeat it while killed processes still use the disk."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _run(*command)
        except DiskUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _run(*command: object, accept: tuple[int, ...] = (0,)) -> None:
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise DiskUnavailable(str(missing)) from missing
    if done.returncode not in accept:
        raise DiskUnavailable(f"{command}: {done.stderr or done.stdout}")
