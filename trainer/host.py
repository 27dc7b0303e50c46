"""Detect the processors, memory and GPUs of this host, without torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import psutil

from trainer.core.gpu_load import GpuLoad
from trainer.core.job import JsonObject

GIB = 1024**3
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as reported by the driver. `memory` is in bytes."""

    index: int
    name: str
    memory: int
    driver: str


MOST_LOADERS = 8  # loader processes per training; the default of Ultralytics


def loaders_per_slot(slots: int) -> int | None:
    """Return the number of loader processes per training on a host with `slots` slots.

    Return None if the number is the default of Ultralytics. Ultralytics divides the processors by the GPUs of one
    training, not by the slots, and also counts processors that a container cannot use.
    """
    usable = len(os.sched_getaffinity(0))
    share = max(1, min(MOST_LOADERS, usable // slots))
    return share if share < min(MOST_LOADERS, os.cpu_count() or 1) else None


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this host from NVML, or an empty tuple without a driver."""

    def describe(nvml: Any, index: int, handle: Any) -> Gpu:
        memory, driver = nvml.nvmlDeviceGetMemoryInfo(handle).total, nvml.nvmlSystemGetDriverVersion()
        return Gpu(index=index, name=nvml.nvmlDeviceGetName(handle), memory=memory, driver=driver)

    return tuple(_each_gpu(describe))


def visible_gpus(mask: str | None) -> tuple[Gpu, ...]:
    """Return the visible GPUs. `mask` is a value of CUDA_VISIBLE_DEVICES; None means all GPUs.

    As in CUDA, the first entry that is not a GPU index of this host and all later entries are ignored.
    Names of GPUs (GPU-…) are not supported.
    """
    if mask is None:
        return gpus()
    by_index = {str(gpu.index): gpu for gpu in gpus()}
    names = [name.strip() for name in mask.split(",")]
    return tuple(by_index[name] for name in takewhile(by_index.__contains__, names))


def gpu_loads() -> list[GpuLoad]:
    """Return the current load of each GPU."""

    def describe(nvml: Any, index: int, handle: Any) -> GpuLoad:
        used, utilization = nvml.nvmlDeviceGetMemoryInfo(handle).used, nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        return GpuLoad(
            index=index, name=nvml.nvmlDeviceGetName(handle), memory_used=used, utilization=utilization / 100
        )

    return _each_gpu(describe)


# runs in a separate process, so that a hanging driver does not block the service
ASK_DRIVER = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
error = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
print(f"CUDA error {error}" if error else count.value)
"""


class GpuCheck:
    """Checks that all GPUs still respond. Thread-safe.

    Compares the number of GPUs that CUDA reports with the highest earlier number. NVML is not used for the comparison,
    because NVML can report more GPUs than a process can use (MIG).
    """

    def __init__(self, environment: Mapping[str, str], *, ask: str | None = None, seconds: float = 60.0) -> None:
        self._environment = dict(environment)
        self._ask = ask or ASK_DRIVER
        self._seconds = seconds
        self._expected = 1

    def __call__(self) -> str | None:
        """Return the problem as one sentence, or None. For a host without a GPU, return None."""
        if not visible_gpus(self._environment.get("CUDA_VISIBLE_DEVICES")):
            return None
        answer = self._answer()
        if answer.isdigit() and int(answer) >= self._expected:
            self._expected = int(answer)
            return None
        if answer.isdigit():
            problem = f"{answer} of {self._expected} GPUs answer"
        else:
            problem = f"the GPU driver fails ({answer[:200]})"
        return f"GPU: {problem}: look at nvidia-smi and dmesg, then restart the host."

    def _answer(self) -> str:
        """Return the last output line of a process that asks the driver, or a message after the time limit."""
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", self._ask],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._environment,
            )  # fmt: skip
        except OSError as error:
            return f"no process can be started to ask it: {error}"
        try:
            return process.communicate(timeout=self._seconds)[0].decode(errors="replace").strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a process that waits for a hanging driver cannot be killed
                process.communicate(timeout=1.0)
            return f"no answer within {self._seconds:.0f} s"


def _each_gpu(describe: Callable[[Any, int, Any], T]) -> list[T]:
    """Return `describe(library, index, handle)` for each GPU, or an empty list without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        indices = range(pynvml.nvmlDeviceGetCount())
        return [describe(pynvml, index, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in indices]
    finally:
        pynvml.nvmlShutdown()


@lru_cache(maxsize=1)
def hardware() -> JsonObject:
    """Return the hardware columns of `trainer_workers`, in the format of the web app."""
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
