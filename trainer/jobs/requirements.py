"""The requirements of a run for its worker. Every claim reads them, so reading is cheap and never raises.

`trainer.requirements` in supabase/migrations/ follows the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.core.job import Json
from trainer.core.json_text import json_from_text

_NUMBER = re.compile(r"\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*", re.ASCII)
_MOST_DEVICES = 64
_LONGEST_LIST = 1000  # characters of a list of devices


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """The minimum resources of a worker; 0 is no requirement. `gpu_memory_gb` is per GPU."""

    gpus: float = 0.0
    gpu_memory_gb: float = 0.0

    def served_by(self, capabilities: Mapping[str, float]) -> bool:
        return (
            self.gpus <= capabilities.get("gpus", 0.0)
            and self.gpu_memory_gb <= capabilities.get("gpu_memory_gb", 0.0)
        )  # fmt: skip


def requirements(configuration: Json) -> Requirements:
    """Return the requirements in `requires.gpus`, `requires.gpu_memory_gb` and `device`. Invalid values are ignored."""
    settings = _parsed(configuration)
    if not isinstance(settings, Mapping):
        return Requirements()
    asked = settings.get("requires")
    asked = asked if isinstance(asked, Mapping) else {}
    devices = _device_count(settings.get("device"))
    return Requirements(
        gpus=max(_amount(asked.get("gpus")), devices if devices > 1 else 0.0),
        gpu_memory_gb=_amount(asked.get("gpu_memory_gb")),
    )


def _parsed(configuration: Json) -> Json:
    """Return the configuration, parsed if it is JSON text."""
    if not isinstance(configuration, str):
        return configuration
    try:
        return json_from_text(configuration)
    except ValueError:
        return None


def _amount(value: Json) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        value = str(value)
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else 0.0


def _device_count(device: Json) -> int:
    """Return the number of devices in a text like "0,1" or a list like [0, 1]; 0 for any other value."""
    if isinstance(device, str):
        device = [part for part in device.split(",") if part.strip()] if len(device) <= _LONGEST_LIST else []
    return len(device) if isinstance(device, list) and len(device) <= _MOST_DEVICES else 0
