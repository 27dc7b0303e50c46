"""What this machine is: its processors, memory and GPUs, found out without torch."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this host by NVML; none when there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(
                index=index,
                name=pynvml.nvmlDeviceGetName(handle),
                memory=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                driver=driver,
            )
            for index, handle in enumerate(handles)
        )
    finally:
        pynvml.nvmlShutdown()


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
