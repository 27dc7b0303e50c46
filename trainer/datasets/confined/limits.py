"""The limits of a confined process: memory, files, network and other processes."""

from __future__ import annotations

import contextlib
import resource
import sys
import sysconfig
from pathlib import Path

from trainer.datasets.decoder import Access
from trainer.sandbox.entry import enter, require
from trainer.sandbox.landlock import AccessPolicy

MEMORY = 4 << 30  # bytes of address space; the annotations of COCO (0.45 GB of JSON) need about 3 GiB
CPU_SECONDS = 4 * 3600  # one million images take a few minutes
OPEN_FILES = 256
OOM_SCORE = "500"  # when the host runs out of memory, the kernel kills this process, not the service

_PROJECT = Path(__file__).parents[3]
# modules and libraries that Python loads later
_SYSTEM = (
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/local/lib",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
)


def limit_resources() -> None:
    """Limit the memory, the processor time and the open files of this process. Raises OSError."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        hard = resource.getrlimit(kind)[1]  # a lower limit of the operator cannot be raised, and stays
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        # SIGXCPU says why the process ended; at the hard limit, it would be killed like a process without memory
        soft = max(1, limit - 1) if kind == resource.RLIMIT_CPU else limit
        resource.setrlimit(kind, (soft, limit))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def confine(access: Access, sandbox: str) -> list[str]:
    """Put this process and all its later threads into the sandbox. Return the protections that this host does not have.

    `sandbox` is the setting SANDBOX. Raises OSError if a protection is required or fails.
    """
    if sandbox == "0":
        return []
    missing = enter(_policy(access), sockets=None)
    require(missing, sandbox)
    return missing


def _policy(access: Access) -> AccessPolicy:
    installed = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    on_path = {path for path in sys.path if path and not _PROJECT.is_relative_to(path)}
    return AccessPolicy(
        write=tuple(map(Path, access.write)),
        fill=tuple(map(Path, access.fill)),
        read=(_PROJECT / "trainer", *map(Path, (*access.read, *_SYSTEM, *installed, *on_path))),
        names=(_PROJECT, *map(Path, access.names)),
        samples=tuple(map(Path, access.names or access.read)),  # other parts of a root can vanish at any time
    )
