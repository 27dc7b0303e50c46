"""Enters the sandbox: first the restriction of files (landlock.py), then that of system calls (seccomp.py)."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.sandbox.landlock import AccessPolicy, SandboxUnavailable, confine_files
from trainer.sandbox.seccomp import Sockets, restrict_system_calls


def enter(policy: AccessPolicy, sockets: Sockets | None, *, ports: range | None = None) -> list[str]:
    """Restrict this thread and all that it starts later. Return the protections that the kernel does not have.

    The arguments are those of `confine_files` and `restrict_system_calls`. Raises OSError for every other failure: then
    the process must end, because a run could have caused the failure.
    """
    missing = []
    try:
        confine_files(policy, tcp=sockets is not None and sockets.tcp, ports=ports)
    except SandboxUnavailable as error:
        missing.append(f"files (Landlock: {error.strerror})")
    try:
        restrict_system_calls(sockets)
    except SandboxUnavailable as error:
        missing.append(f"system calls and network (seccomp: {error.strerror})")
    return missing


def require(missing: Sequence[str], setting: str) -> None:
    """Raise OSError if protections are missing that the setting SANDBOX requires."""
    if missing and setting == "required":
        raise OSError(f"SANDBOX=required, and this host does not have: {', '.join(missing)}")
