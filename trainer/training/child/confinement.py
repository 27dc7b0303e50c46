"""Enters the sandbox before a training, and reports the result to the supervisor. A process without a report ends."""

from __future__ import annotations

import os
from collections.abc import Mapping

from trainer.core.ports import TrainingOrder
from trainer.training.child.access_policy import confine
from trainer.training.wire import SANDBOX, SandboxReport, encode_sandbox

_FAILED = 3  # exit code


def enter_sandbox(order: TrainingOrder, environment: Mapping[str, str], events_fd: int) -> None:
    """Put this thread, and all that it starts later, into the sandbox. Exit if the setting SANDBOX requires more.

    Call this before the dataset or the model is opened, and before anything else is written to `events_fd`.
    """
    setting = environment.get(SANDBOX, "auto")
    if setting == "0":
        return
    report = _confined(order, environment, is_required=setting == "required")
    line = encode_sandbox(report)
    while line:
        line = line[os.write(events_fd, line) :]
    if report.problem:
        os._exit(_FAILED)
    for missing in report.missing:
        print(f"Sandbox not available on this host ({missing}): training continues without it.", flush=True)  # noqa: T201 - the run's log


def _confined(order: TrainingOrder, environment: Mapping[str, str], *, is_required: bool) -> SandboxReport:
    try:
        missing = confine(order, environment)
    except OSError as error:  # any other exception ends the process without a report
        return SandboxReport(problem=str(error))
    if missing and is_required:
        return SandboxReport(problem=f"SANDBOX=required, and this host does not have: {', '.join(missing)}")
    return SandboxReport(missing=tuple(missing))
