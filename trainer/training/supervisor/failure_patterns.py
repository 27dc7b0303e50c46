"""Patterns in the output and exceptions of a failed training process, each with its error message.

Messages may use {when} ("while training (epoch 3)"), {quote} (the matching line), {batch_hint}, {size}, {free} and
{package}; diagnosis.py fills them in.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.core.errors import HostSuspected, MachineFailed, RunFailed


@dataclass(frozen=True)
class Cause:
    """A known failure: `pattern` matches one line of output or of an exception.

    `error` is `RunFailed` if another attempt would fail in the same way.
    """

    pattern: str  # case is ignored
    error: type[RunFailed | MachineFailed]
    sentence: str


HOST_MEMORY = (
    "The host ran out of memory {when}: use fewer workers or a smaller batch, turn the cache off, "
    "or give the host more memory ({quote})."
)
GPU = "The GPU or its driver failed {when}: look at nvidia-smi and dmesg on the host ({quote})."
SHARED_MEMORY = (
    "The shared-memory mount /dev/shm was full {when}: use fewer workers, or make the mount larger "
    "(Docker: --shm-size or --ipc=host) ({quote})."
)


# the first match counts, so specific patterns come before general patterns
CAUSES = (
    Cause(
        r"No space left on device|Errno 28\b|Disk quota exceeded|Errno 122\b"
        r"|inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing",
        MachineFailed,
        "The disk was full {when}: free some space on the host{free} ({quote}).",
    ),
    Cause(
        r"bus error|insufficient shared memory|out of shared memory|unable to \w+ shared memory|shared memory object"
        r"|/dev/shm",
        MachineFailed,
        SHARED_MEMORY,
    ),
    Cause(
        r"(?:cuda|hip|xpu|cudnn|gpu|mps)\b.{0,40}out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"
        r"|CUDA backend memory error|unable to find an engine to execute",
        RunFailed,
        "The GPU ran out of memory {when}{size}: {batch_hint} ({quote}).",
    ),
    Cause(
        r"device-side assert",
        RunFailed,
        "A value of the dataset was out of range on the GPU {when}. Check that every class index and keypoint of the "
        "labels fits the data.yaml ({quote}).",
    ),
    Cause(
        r"no kernel image is available|driver (?:version )?(?:on your system )?is (?:too old|insufficient)"
        r"|forward compatibility was attempted|not compatible with the current PyTorch",
        HostSuspected,
        "The installed torch does not support this host's GPU or driver: update the driver, or install a torch "
        "that supports it ({quote}).",
    ),
    Cause(
        r"NCCL (?:error|operation|watchdog)|ncclUnhandled|ProcessGroupNCCL|DistBackendError",
        MachineFailed,
        "The GPUs of this run lost the connection to each other {when}. If it happens again, train on one GPU, or set "
        "NCCL_P2P_DISABLE=1 for the service ({quote}).",
    ),
    Cause(  # errors that a training can report falsely, but not cause: the worker tests the GPUs itself
        r"no CUDA-capable device|No CUDA GPUs are available|Invalid CUDA 'device=|Found no NVIDIA driver"
        r"|CUDA driver initialization failed|CUDA unknown error|busy or unavailable|uncorrectable (?:NVLink|ECC)",
        HostSuspected,
        GPU,
    ),
    Cause(  # a training can also cause these errors, so they do not prove a host failure
        r"CUDA error|unspecified launch failure|\bXid\b|cuDNN error|CUBLAS_STATUS_|CUDNN_STATUS_|\bNVML\b"
        r"|illegal memory access",
        MachineFailed,
        GPU,
    ),
    Cause(
        r"DataLoader worker.* (?:is killed by signal: (?:Killed|9)|exited unexpectedly)|MemoryError|bad_alloc"
        r"|Cannot allocate memory|Errno 12\b|can't allocate memory|not enough memory",
        MachineFailed,
        HOST_MEMORY,
    ),
    Cause(
        r"Too many open files|Errno 24\b|received 0 items of ancdata|can't start new thread"
        r"|Resource temporarily unavailable|Errno 11\b",
        MachineFailed,
        "The limit of open files, threads or processes was reached {when}: use fewer workers, or raise the "
        "service's limits (systemd: LimitNOFILE, TasksMax) ({quote}).",
    ),
    Cause(
        r"Read-only file system|Errno 30\b|PermissionError|Permission denied|Errno 13\b",
        MachineFailed,
        "The training could not read or write a file {when}: check the mount and the permissions of the "
        "service's user ({quote}).",
    ),
    Cause(
        r"Input/output error|Errno 5\b|Stale file handle|Errno 116\b|Transport endpoint|Remote I/O error",
        HostSuspected,
        "A disk or a network mount failed {when}: look at dmesg on the host ({quote}).",
    ),
    Cause(
        r"NaN persisted|corrupted with NaN/Inf|no valid last\.pt is available for recovery|loss (?:is|became) (?:nan|inf)",
        RunFailed,
        "The training diverged {when}: losses stayed NaN or infinite; use a lower learning rate (lr0), or set amp to "
        "false ({quote}).",
    ),
    Cause(
        r"exceeds dataset class count|class indices 0-\d",
        RunFailed,
        "A label names a class that the dataset does not have: indices are 0-based and below the number of names "
        "({quote}).",
    ),
    Cause(
        r"equal numbers of boxes and segments|kpt_shape",
        RunFailed,
        "The labels do not match the task: the task segment needs polygons, the task pose needs keypoints and "
        "kpt_shape ({quote}).",
    ),
    Cause(
        r"No labels found|No valid annotations|No (?:valid )?images found|Error loading data from",
        RunFailed,
        "No usable images or labels were found: check that the images are readable, and that the labels of images/a.jpg "
        "are in labels/a.txt ({quote}).",
    ),
    Cause(
        r"not a loadable checkpoint|outside the supported Ultralytics checkpoint|PytorchStreamReader|UnpicklingError"
        r"|invalid load key|Weights only load failed|Resume checkpoint not found|Ran out of input|unexpected EOF",
        RunFailed,
        "The weights file cannot be loaded: it is damaged, or it is not a model that Ultralytics saved. "
        "Download the file again, or choose another model ({quote}).",
    ),
    Cause(
        r"No module named '(?P<package>[^']+)'",
        MachineFailed,
        "The Python package {package} is missing on this host: install requirements.txt again ({quote}).",
    ),
    Cause(
        r"FileNotFoundError|Image Not Found|No such file or directory|images not found|Dataset '.*does not exist",
        MachineFailed,
        "A file that the training needs is missing {when}: do not change the dataset during a training ({quote}).",
    ),
    Cause(
        r"\[Errno \d+\]|Parent directory .* does not exist",
        MachineFailed,
        "The training could not use a file or a folder {when}: check the disk, the mounts and the permissions of the "
        "service's user ({quote}).",
    ),
)
