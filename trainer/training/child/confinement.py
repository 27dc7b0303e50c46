"""Enters the sandbox before a training, and reports the result to the supervisor. A process without a report ends."""

from __future__ import annotations

import os
from collections.abc import Mapping

from trainer.core.ports import TrainingOrder
from trainer.sandbox.entry import require
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
    try:
        missing = confine(order, environment)
        require(missing, setting)
        report = SandboxReport(missing=tuple(missing))
    except OSError as error:  # any other exception ends the process without a report
        report = SandboxReport(problem=str(error))
    line = encode_sandbox(report)
    while line:
        line = line[os.write(events_fd, line) :]
    if report.problem:
        os._exit(_FAILED)
    for protection in report.missing:
        print(f"Sandbox not available on this host ({protection}): training continues without it.", flush=True)  # noqa: T201 - the run's log
