"""Enters the sandbox before a training, and reports the result to the supervisor. A process without a report ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from trainer.core.ports import TrainingOrder
from trainer.sandbox.entry import enter, require
from trainer.sandbox.private_network import PRIVATE_NETWORK
from trainer.training.child.access_policy import access_policy
from trainer.training.child.socket_policy import ephemeral_ports, sockets_for
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


def confine(order: TrainingOrder, environment: Mapping[str, str]) -> list[str]:
    """Put this thread, and all that it starts later, into the sandbox. Return the protections that the kernel lacks.

    Raises OSError for every other reason: then the process must end, because a run could have caused the error.
    """
    order.run_dir.mkdir(parents=True, exist_ok=True)
    sockets = sockets_for(order)
    if order.devices:
        create_gpu_device(Path("/dev"))
    is_shared = sockets.tcp and PRIVATE_NETWORK not in environment
    ports = ephemeral_ports() if is_shared else None  # the ranks listen there; other services listen on lower ports
    missing = enter(access_policy(order, environment), sockets, ports=ports)
    if is_shared:
        missing.append("network of several GPUs (user namespaces are forbidden)")
    return missing


def create_gpu_device(devices: Path) -> None:
    """Create the device file that CUDA needs.

    After a boot, CUDA would start a setuid program to create the file. The sandbox forbids this program.
    """
    program = shutil.which("nvidia-modprobe")
    if program and (devices / "nvidiactl").exists() and not (devices / "nvidia-uvm").exists():
        subprocess.run([program, "-u", "-c", "0"], stdin=subprocess.DEVNULL, check=False)
