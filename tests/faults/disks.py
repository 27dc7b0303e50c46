"""Small disks that come to grief when asked to: full, without inodes, over their quota, read-only. They need root.

with Disk("quota", folder) as disk:
… disk.place …
disk.strike()      from here on nothing can be written, also to files that are open already
disk.mend()        as before
"""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

MIB = 2**20
KINDS = ("full", "no inodes", "quota", "read-only")
# the system's words or ours
SAYS = {
    "full": f"{os.strerror(errno.ENOSPC)}|disk is full",
    "no inodes": f"{os.strerror(errno.ENOSPC)}|disk is full",
    "quota": f"{os.strerror(errno.EDQUOT)}|disk quota is used up",
    "read-only": os.strerror(errno.EROFS),
}
FIRST_SUBVOLUME = 256  # btrfs counts from here
GIB_AND_A_HALF = 1536  # MiB: a dataset keeps one GiB in reserve


class NotHere(Exception):
    """This machine lets nobody make such a disk."""


class Disk:
    """A file with a file system in it, mounted at `place`; what is not written takes no space."""

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
            raise NotHere(f"this kernel knows no {self._type}")
        for place in {self.place, self._whole}:
            place.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._mebibytes * MIB)
        few_inodes = ["-N", "300"] if self.kind == "no inodes" else []
        _run(f"mkfs.{self._type}", "-q", *few_inodes, *(["-m", "0"] if self._type == "ext4" else []), self._image)
        self._mount()
        if self.kind == "quota":
            _run("btrfs", "subvolume", "create", self._whole / "limited")
            _run("btrfs", "quota", "enable", self._whole)
            _run("mount", "--bind", self._whole / "limited", self.place)
        return self

    def __exit__(self, *_: object) -> None:
        _run("umount", "-l", self.place)
        if self.kind == "quota":
            _run("umount", "-l", self._whole)
        self._image.unlink(missing_ok=True)

    def strike(self) -> None:
        if self.kind == "quota":
            self._limit("1")
        elif self.kind == "read-only":
            _run("mount", "-o", "remount,abort", self.place)  # what the kernel does after an error of the device
        elif self.kind == "full":
            self._fill()
        else:
            self._use_up_inodes()

    def mend(self) -> None:
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
        # asked of the whole, because even taking a limit away has to be written down somewhere
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


def _run(*command: object, accept: tuple[int, ...] = (0,)) -> None:
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise NotHere(str(missing)) from missing
    if done.returncode not in accept:
        raise NotHere(f"{command}: {done.stderr or done.stdout}")
