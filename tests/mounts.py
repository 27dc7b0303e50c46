"""Mounts that do not outlive the test process, even if it is killed. Otherwise pytest could not remove the folders."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# the places are no arguments, so that a search for the processes of a service does not find this one
_UNMOUNT_AT_END_OF_FILE = 'while read -r place; do set -- "$@" "$place"; done; for place; do umount -l "$place"; done'


@contextmanager
def unmounted_afterwards(*places: Path) -> Iterator[None]:
    """Unmount `places` after the block, or when this process ends. A place without a mount is not an error."""
    with subprocess.Popen(
        ["sh", "-c", _UNMOUNT_AT_END_OF_FILE],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as unmounts:
        assert unmounts.stdin
        unmounts.stdin.writelines(f"{place}\n" for place in places)
        unmounts.stdin.flush()
        yield
