"""What this machine is: its processors, memory and GPUs, found out without torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

from trainer.core.job import JsonObject

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that the driver shows; memory in bytes."""

    index: int
    name: str
    memory: int
    driver: str


MOST_LOADERS = 8  # Ultralytics' default


def loaders_per_slot(slots: int) -> int | None:
    """How many loader processes a training should have that shares this machine with others.

    None when Ultralytics would choose the same: it divides the processors by the GPUs that one training sees, which
    is one, and it counts processors that a container may not use.
    """
    usable = len(os.sched_getaffinity(0))
    share = max(1, min(MOST_LOADERS, usable // slots))
    return share if share < min(MOST_LOADERS, os.cpu_count() or 1) else None


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a GPU is doing now: memory in bytes, utilisation 0…1."""

    index: int
    name: str
    memory_used: int
    utilisation: float


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this host by NVML; none when there is no driver."""
    with _nvml() as nvml:
        if nvml is None:
            return ()
        driver = nvml.nvmlSystemGetDriverVersion()
        return tuple(
            Gpu(
                index=index,
                name=nvml.nvmlDeviceGetName(handle),
                memory=nvml.nvmlDeviceGetMemoryInfo(handle).total,
                driver=driver,
            )
            for index, handle in _handles(nvml)
        )


def visible_gpus(mask: str | None) -> tuple[Gpu, ...]:
    """The GPUs that `mask`, a CUDA_VISIBLE_DEVICES of indices, leaves visible; all of them without a mask.

    As CUDA does, reading stops at the first entry that is not an index of this host. Names (GPU-…) are not read.
    """
    if mask is None:
        return gpus()
    by_index = {str(gpu.index): gpu for gpu in gpus()}
    names = [name.strip() for name in mask.split(",")]
    return tuple(by_index[name] for name in takewhile(by_index.__contains__, names))


def gpu_loads() -> list[Load]:
    """What the GPUs are doing now."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        return [
            Load(
                index=index,
                name=nvml.nvmlDeviceGetName(handle),
                memory_used=nvml.nvmlDeviceGetMemoryInfo(handle).used,
                utilisation=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            )
            for index, handle in _handles(nvml)
        ]


# run in a process of its own: a driver that hangs must not hang the service
ASK_DRIVER = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
error = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
print(f"CUDA error {error}" if error else count.value)
"""


class GpuCheck:
    """Whether the GPUs that CUDA showed to this service at first are still there. Safe between threads.

    NVML may show more of them than a process can use (MIG), so CUDA's own first count is what later ones are held to.
    """

    def __init__(self, environment: Mapping[str, str], *, ask: str | None = None, seconds: float = 60.0) -> None:
        self._environment = dict(environment)
        self._ask = ask or ASK_DRIVER
        self._seconds = seconds
        self._expected = 1

    def __call__(self) -> str | None:
        """What is wrong, in one sentence; None when nothing is, and on a host without a GPU."""
        if not visible_gpus(self._environment.get("CUDA_VISIBLE_DEVICES")):
            return None
        said = self._answer()
        if said.isdigit() and int(said) >= self._expected:
            self._expected = int(said)
            return None
        shown = f"{said} of {self._expected} GPUs answer" if said.isdigit() else f"the GPU driver fails ({said[:200]})"
        return f"GPU: {shown}: look at nvidia-smi and dmesg, then restart the host."

    def _answer(self) -> str:
        """The last line that was printed."""
        asked = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", self._ask],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._environment,
        )  # fmt: skip
        try:
            return asked.communicate(timeout=self._seconds)[0].decode(errors="replace").strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired:
            asked.kill()
            with suppress(subprocess.TimeoutExpired):  # in a driver that hangs it cannot end
                asked.communicate(timeout=1.0)
            return f"no answer within {self._seconds:.0f} s"


@contextmanager
def _nvml() -> Iterator[Any]:
    """The driver's management library, or None on a host without."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handles(nvml: Any) -> list[tuple[int, Any]]:
    return [(index, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount())]


@lru_cache(maxsize=1)
def hardware() -> JsonObject:
    """The hardware columns of `trainer_workers`, in the words that the web app reads."""
    found = gpus()
    facts: JsonObject = {
        "device_type": "gpu" if found else "cpu",
        "cpu_model": _cpu_model(),
        "ram_gb": round(psutil.virtual_memory().total / GIB, 1),
    }
    if found:
        facts |= {"gpu_name": found[0].name, "gpu_memory_gb": round(min(gpu.memory for gpu in found) / GIB, 1)}
    return facts


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
