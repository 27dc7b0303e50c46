"""What this kernel offers for the sandbox. The functions only ask the kernel: they do not restrict this process."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.sandbox.landlock import SandboxUnavailable, landlock_version
from trainer.sandbox.seccomp import require_seccomp

SIGNALS = 6  # the version of Landlock that restricts signals (Linux 6.12)


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
    answers: dict[str, int | None] = {}
    missing = []
    for name, ask in (("Landlock", landlock_version), ("seccomp", require_seccomp)):
        try:
            answers[name] = ask()
        except SandboxUnavailable:
            missing.append(name)
        except OSError as error:
            return KernelSupport(landlock=0, forbidden=f"{name}: {error.strerror}")
    return KernelSupport(landlock=answers.get("Landlock") or 0, missing=tuple(missing))


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
