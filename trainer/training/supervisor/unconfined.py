"""Runs without the whole sandbox: the warning for the row, and the error of a process that must not continue."""

from __future__ import annotations

from trainer.core.errors import HostUnfit
from trainer.core.events import Warned
from trainer.training.wire import SandboxReport

DISABLED = SandboxReport(missing=("everything (SANDBOX=0)",))  # the report for processes that do not enter the sandbox


def unconfined(report: SandboxReport) -> Warned:
    """Return the warning for a run without the protections in `report.missing`."""
    missing = ", ".join(report.missing)
    message = f"The training runs without a complete sandbox. Missing: {missing}."
    return Warned(code="unconfined", message=message)


def not_entered(problem: str) -> HostUnfit:
    """Return the error of a process that ended because it could not enter the sandbox."""
    return HostUnfit(
        f"The training process cannot enter its sandbox on this host, so the run was not trained ({problem}). "
        "Fix the cause; `doctor` shows what this kernel supports."
    )
