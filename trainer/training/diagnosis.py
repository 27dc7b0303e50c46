"""From what a dead training process left behind to one sentence that says what happened and what to change."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from trainer.core.errors import MachineFailed, RunFailed
from trainer.core.events import Crashed, Phase

_GIB = 2**30
_FIRST_LINE = 300  # characters of an exception's message that are repeated


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known about a training process that ended without a result."""

    exit_code: int | None  # negative: the signal that ended it
    phase: Phase
    crashed: Crashed | None = None  # its last word, when it had one
    output: Sequence[str] = ()  # its last lines
    epoch: int = 0  # the last one heard of
    batch: int | float | None = None
    imgsz: int | None = None
    devices: tuple[int, ...] = ()
    oom_kills: int = 0  # processes that the kernel killed for memory meanwhile, in our control group or on the host
    free_disk: int | None = None  # bytes where the run is written


Diagnosis: TypeAlias = RunFailed | MachineFailed
_Rule: TypeAlias = tuple[re.Pattern[str], Callable[["_Case"], Diagnosis]]


class _Case:
    """The evidence with the words that a rule needs."""

    def __init__(self, evidence: Evidence, found: re.Match[str] | None) -> None:
        self.evidence = evidence
        self._found = found

    @property
    def when(self) -> str:
        evidence = self.evidence
        return f"while {evidence.phase.value}" + (f" (epoch {evidence.epoch})" if evidence.epoch else "")

    @property
    def quote(self) -> str:
        """The line that gave it away."""
        if self._found is None:
            return ""
        text = self._found.string
        start = text.rfind("\n", 0, self._found.start()) + 1
        return _short(text[start:].split("\n", 1)[0])

    def group(self, name: str) -> str:
        return (self._found.group(name) if self._found else None) or ""


def diagnose(evidence: Evidence) -> Diagnosis:
    """The error that this ending is. `RunFailed` when another attempt would meet it again."""
    crashed = evidence.crashed
    # the exception itself first: the output may hold warnings that were survived
    for text in filter(None, (_words(crashed), "\n".join(evidence.output) if not crashed else "")):
        for pattern, verdict in _RULES:
            if found := pattern.search(text):
                return verdict(_Case(evidence, found))
    case = _Case(evidence, None)
    if crashed:
        return _unknown_exception(case, crashed)
    return _death(case)


def stuck(phase: Phase, epoch: int, seconds: float) -> MachineFailed:
    """The training process was killed because nothing was heard of it for longer than the phase may take."""
    where = f"{phase.value} (epoch {epoch})" if epoch else phase.value
    if phase is Phase.STARTING:
        return MachineFailed(
            f"The training process was not ready after {seconds:.0f} s and was killed; "
            "if this host is merely slow to import torch, give it more time, otherwise look at the run's log.",
        )
    return MachineFailed(
        f"The training was stuck: nothing happened for {seconds:.0f} s while {where}, so its process was killed; "
        "if a step may really take that long, raise STALL_SECONDS.",
    )


# ── verdicts ──


def _gpu_memory(case: _Case) -> Diagnosis:
    batch, imgsz = case.evidence.batch, case.evidence.imgsz
    at = f" at batch {batch:g}, image size {imgsz}" if batch and imgsz else ""
    if batch == 1:
        mend = f"use a smaller image size than {imgsz} or a smaller model"
    elif batch is not None and batch < 1:
        mend = "give the batch as a number of images, or use a smaller image size or model"
    else:
        mend = "use a smaller batch, image size or model"
    return RunFailed(f"The GPU's memory did not suffice {case.when}{at}: {mend} ({case.quote}).")


def _host_memory(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"The training ran out of the host's memory {case.when} and was killed: use fewer workers, a smaller batch, "
        f"or cache off, or give the host more memory{_evidence_of(case)}.",
    )


def _shared_memory(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"The shared-memory mount /dev/shm is full {case.when}: use fewer workers, or make it larger "
        f"(Docker: --shm-size or --ipc=host) ({case.quote}).",
    )


def _disk_full(case: _Case) -> Diagnosis:
    free = case.evidence.free_disk
    left = "" if free is None else f", {free / _GIB:.1f} GiB are free where the run is written"
    return MachineFailed(f"The disk was full {case.when}: free some space on the host{left} ({case.quote}).")


def _read_only(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"A file system was read-only {case.when}, or the service may not write there: "
        f"check the mount and the service user's rights ({case.quote}).",
    )


def _too_many_files(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"The training had too many files open {case.when}: use fewer workers, or raise the service's limit "
        f"(systemd: LimitNOFILE) ({case.quote}).",
    )


def _not_a_number(case: _Case) -> Diagnosis:
    return RunFailed(
        f"The training diverged {case.when}: the loss stayed NaN or infinite after going back to the last "
        f"checkpoint; use a lower learning rate (lr0), or amp false ({case.quote}).",
    )


def _driver(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"The GPU or its driver failed {case.when}: check nvidia-smi and dmesg on the host; "
        f"another attempt may succeed ({case.quote}).",
    )


def _no_kernel(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"The installed torch does not fit this host's GPU or driver: update the driver, or install the torch build "
        f"for it ({case.quote}).",
    )


def _device_assert(case: _Case) -> Diagnosis:
    return RunFailed(
        f"A value in the dataset was out of range on the GPU {case.when}: check that every class index and keypoint "
        f"in the labels fits the data.yaml ({case.quote}).",
    )


def _nccl(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"The GPUs of this run lost contact with each other {case.when}: another attempt may succeed; if it repeats, "
        f"train on one GPU or set NCCL_P2P_DISABLE=1 ({case.quote}).",
    )


def _dataset_vanished(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"A file that the training needs disappeared {case.when}: leave the dataset alone while it is trained on "
        f"({case.quote}).",
    )


def _class_range(case: _Case) -> Diagnosis:
    return RunFailed(
        f"A label names a class that the dataset does not have: class indices are 0-based and below the number of "
        f"names ({case.quote}).",
    )


def _no_labels(case: _Case) -> Diagnosis:
    return RunFailed(
        f"No usable labels were found: each image needs a .txt of the same name in the labels folder ({case.quote}).",
    )


def _no_images(case: _Case) -> Diagnosis:
    return RunFailed(f"No usable images were found: check that the files are readable pictures ({case.quote}).")


def _wrong_task(case: _Case) -> Diagnosis:
    return RunFailed(f"The labels do not fit the task: segmentation needs polygons, not boxes ({case.quote}).")


def _weights(case: _Case) -> Diagnosis:
    return RunFailed(
        f"The weights file cannot be loaded: it is damaged, or holds something else than an Ultralytics model; "
        f"fetch it again or choose another model ({case.quote}).",
    )


def _missing_package(case: _Case) -> Diagnosis:
    return MachineFailed(
        f"The Python package {case.group('package')} is not installed on this host: "
        f"install requirements.txt again ({case.quote}).",
    )


# The order counts: the more specific first.
_RULES: tuple[_Rule, ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), verdict)
    for pattern, verdict in (
        (r"No space left on device|Errno 28\b|ENOSPC|Disk quota exceeded|Errno 122\b", _disk_full),
        (
            (r"bus error|insufficient shared memory|unable to (?:mmap|open|allocate) shared memory"
            r"|shared memory object|/dev/shm/?.* (?:full|ENOMEM)|could not unlink the shared memory"),
            _shared_memory,
        ),
        (
            (r"(?:cuda|hip|xpu|cudnn|gpu|mps)[^\n]{0,40}out of memory|torch\.OutOfMemoryError|OutOfMemoryError: CUDA"
            r"|CUBLAS_STATUS_ALLOC_FAILED|CUDA backend memory error|^OutOfMemoryError"),
            _gpu_memory,
        ),
        (
            r"device-side assert",
            _device_assert,
        ),
        (
            (r"no kernel image is available|driver (?:version )?(?:on your system )?is (?:too old|insufficient)"
            r"|forward compatibility was attempted|not compatible with the current PyTorch"),
            _no_kernel,
        ),
        (r"NCCL (?:error|operation|watchdog)|ncclUnhandled|ProcessGroupNCCL|DistBackendError", _nccl),
        (
            (r"CUDA error|unspecified launch failure|no CUDA-capable device|No CUDA GPUs are available|Xid|cuDNN error"
            r"|CUBLAS_STATUS_(?!ALLOC)|CUDNN_STATUS|NVML|illegal memory access|Invalid CUDA 'device="
            r"|Found no NVIDIA driver"),
            _driver,
        ),
        (
            (r"DataLoader worker[^\n]* is killed by signal: (?:Killed|9)|DataLoader worker \(pid\(s\)[^\n]*exited"
            r"|MemoryError|Cannot allocate memory|Errno 12\b|can't allocate memory|bad_alloc|bad allocation"
            r"|not enough memory: you tried to allocate"),
            _host_memory,
        ),
        (r"Too many open files|Errno 24\b", _too_many_files),
        (r"Read-only file system|Errno 30\b|PermissionError|Permission denied|Errno 13\b", _read_only),
        (r"NaN persisted|loss (?:is|became) (?:nan|inf)|training collapsed|non-finite", _not_a_number),
        (r"exceeds? dataset class count|exceeds maximum class|class indices 0-", _class_range),
        (
            r"Segment dataset requires|segments[^\n]*do not match|number of boxes and segments|'kpt_shape'|kpt_shape",
            _wrong_task,
        ),
        (r"No labels found|No valid (?:labels|annotations)|labels? (?:are )?missing or (?:are )?empty", _no_labels),
        (r"No (?:valid )?images found|Error loading data from", _no_images),
        (
            (r"not a loadable checkpoint|PytorchStreamReader|invalid load key|UnpicklingError|Weights only load failed"
            r"|unexpected EOF|Unsupported (?:global|class)|Resume checkpoint not found|not a valid checkpoint"
            r"|Ran out of input"),
            _weights,
        ),
        (
            r"(?:FileNotFoundError|Image Not Found|No such file or directory|does not exist)",
            _dataset_vanished,
        ),
        (r"No module named '(?P<package>[^']+)'", _missing_package),
    )
)


def _unknown_exception(case: _Case, crashed: Crashed) -> Diagnosis:
    message = _short(crashed.message.strip().split("\n", 1)[0])
    return RunFailed(
        f"The training failed {case.when} with {crashed.error}{': ' + message if message else ''}. "
        "The run's log has the details.",
    )


def _death(case: _Case) -> Diagnosis:
    evidence = case.evidence
    code = evidence.exit_code
    number = -code if code is not None and code < 0 else (code or 0) - 128 if (code or 0) > 128 else 0
    if number == signal.SIGKILL and evidence.oom_kills:
        return _host_memory(case)
    if number == signal.SIGBUS:
        return _shared_memory(case)
    last = next((_short(line) for line in reversed(evidence.output) if line.strip()), "")
    said = f"; the last line of its output was: {last}" if last else ""
    if number == signal.SIGKILL:
        return MachineFailed(
            f"The training process was killed {case.when} (SIGKILL), most likely because the host's memory ran out: "
            f"use fewer workers or a smaller batch, or give the host more memory{said}.",
        )
    if number:
        return MachineFailed(f"The training process was ended {case.when} by {_signal_name(number)}{said}.")
    return MachineFailed(
        f"The training process ended {case.when} without a result, with exit code {code}{said}.",
    )


def _evidence_of(case: _Case) -> str:
    if case.evidence.oom_kills:
        return " (the kernel's out-of-memory killer was at work)"
    return f" ({case.quote})" if case.quote else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _words(crashed: Crashed | None) -> str:
    """What an exception says: its name and message, and at the end what it came from."""
    if crashed is None:
        return ""
    # only the lines that name exceptions: the traceback's code lines would match rules that they merely mention
    named = [line for line in crashed.traceback.splitlines() if re.match(r"[\w.]+(?:Error|Exception)\b", line)]
    return "\n".join([f"{crashed.error}: {crashed.message}", *named])


def _short(line: str) -> str:
    line = line.strip().rstrip(".")
    return line if len(line) <= _FIRST_LINE else line[:_FIRST_LINE] + "…"
