"""The load of a GPU, which `host.py` measures and the reporters show."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GpuLoad:
    """The current load of a GPU: memory in bytes, utilization from 0 to 1."""

    index: int
    name: str
    memory_used: int
    utilization: float
