"""The limits of a confined process: memory, files, network and other processes."""

from __future__ import annotations

import contextlib
import resource
import sys
import sysconfig
from pathlib import Path

from trainer.datasets.decoder import Access
from trainer.sandbox.landlock import AccessPolicy, SandboxUnavailable, close_network, confine_files

MEMORY = 4 << 30  # bytes of address space; the annotations of COCO (0.45 GB of JSON) need about 3 GiB
CPU_SECONDS = 4 * 3600  # ends a process whose service was killed; one million images take a few minutes
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


def confine(access: Access, sandbox: str) -> list[str]:
    """Limit this process and all its later threads. Return the protections that this host does not have.

    `sandbox` is the setting SANDBOX. Raises OSError if a protection is required or fails.
    """
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    if sandbox == "0":
        return []
    missing = []
    for name, enter in (
        ("files", lambda: confine_files(_policy(access), tcp=False)),
        ("network", close_network),
    ):
        try:
            enter()
        except SandboxUnavailable as error:
            if sandbox == "required":
                raise
            missing.append(f"{name} ({error.strerror})")
    return missing


def _policy(access: Access) -> AccessPolicy:
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    on_path = {path for path in sys.path if path and not _PROJECT.is_relative_to(path)}
    return AccessPolicy(
        write=tuple(map(Path, (*access.write, *access.fill))),
        read=(_PROJECT / "trainer", *map(Path, (*access.read, *_SYSTEM, *installed, *on_path))),
        names=(_PROJECT,),
    )
