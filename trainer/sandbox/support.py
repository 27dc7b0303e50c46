"""What this kernel offers for the sandbox. The functions only ask the kernel: they do not restrict this process."""

from __future__ import annotations

import ctypes
import errno
import platform
from dataclasses import dataclass

from trainer.sandbox.landlock import SandboxUnavailable, call
from trainer.sandbox.system_calls import ARCHITECTURES, numbers

SIGNALS = 6  # the version of Landlock that restricts signals (Linux 6.12)

_CREATE_RULESET, _VERSION = 444, 1
_ACTION_AVAILABLE, _ERRNO = 2, 0x00050000


@dataclass(frozen=True, kw_only=True)
class KernelSupport:
    """The version of Landlock (0: none), and the protections that this kernel does not have.

    `forbidden` is set if Landlock or seccomp fails for another reason, for example because a container forbids it.
    """

    landlock: int
    missing: tuple[str, ...] = ()
    forbidden: str | None = None


def kernel_support() -> KernelSupport:
    """Ask the kernel."""
    answers: dict[str, int] = {}
    missing = []
    for name, ask in (("Landlock", _landlock_version), ("seccomp", _ask_seccomp)):
        try:
            answers[name] = ask()
        except SandboxUnavailable:
            missing.append(name)
        except OSError as error:
            return KernelSupport(landlock=0, forbidden=f"{name}: {error.strerror}")
    return KernelSupport(landlock=answers.get("Landlock", 0), missing=tuple(missing))


def sandbox_problem(setting: str) -> str | None:
    """Return why no training could start with this setting SANDBOX, in one sentence, or None."""
    support = kernel_support()
    if setting == "0":
        return None
    if support.forbidden:
        return (
            f"SANDBOX: this host forbids the sandbox of training processes ({support.forbidden}): allow the system calls "
            "of Landlock and seccomp in the container or unit, or set SANDBOX=0."
        )
    if setting == "required" and support.missing:
        return (
            f"SANDBOX=required, but this kernel has no {' and no '.join(support.missing)}: "
            "enable it (Linux 5.13 or newer), or set SANDBOX=auto."
        )
    return None


def _landlock_version() -> int:
    return call(_CREATE_RULESET, None, 0, _VERSION)


def _ask_seccomp() -> int:
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise SandboxUnavailable(errno.ENOSYS, f"no seccomp filter for {machine}")
    return call(numbers(machine)["seccomp"], _ACTION_AVAILABLE, 0, ctypes.byref(ctypes.c_uint32(_ERRNO)))
