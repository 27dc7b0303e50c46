"""The slots of this host: the number of parallel trainings and their GPUs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

CPU = -1  # a slot without a GPU


class Slots:
    """The slots of this host, and which slots are free. Thread-safe.

    `devices` has the GPU index of each slot, or `CPU`.
    """

    def __init__(self, devices: Sequence[int]) -> None:
        self._free = list(devices)
        self._changed = threading.Condition()
        self._last_acquired = time.monotonic()
        self.total = len(devices)
        self.gpus = self.free_gpus

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def seconds_since_acquired(self) -> float:
        """Return the seconds since a slot was last acquired."""
        return time.monotonic() - self._last_acquired

    @property
    def free_gpus(self) -> int:
        """Return the number of GPUs with a free slot. A GPU with several free slots counts once."""
        return len({*self._free} - {CPU})

    def acquire(self, count: int) -> AcquiredSlots:
        """Take one slot on each of `count` devices, or on all devices with a free slot if there are fewer.

        Devices with more free slots are taken first.
        """
        with self._changed:
            free = Counter(self._free)
            taken = sorted(free, key=lambda device: (-free[device], device))[:count]
            self._free = sorted((free - Counter(taken)).elements())
            self._last_acquired = time.monotonic()
        return AcquiredSlots(self, tuple(sorted(taken)))

    def wait_for_free(self, seconds: float) -> bool:
        """Wait at most `seconds` for a free slot. Return whether a slot is free."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._free), seconds)

    def release(self, devices: Sequence[int]) -> None:
        """Make these slots free again."""
        with self._changed:
            self._free = sorted([*self._free, *devices])
            self._changed.notify_all()


class AcquiredSlots:
    """The slots of a run. `release` can be called more than once."""

    def __init__(self, slots: Slots, held: tuple[int, ...]) -> None:
        self._slots = slots
        self._held = held

    @property
    def gpus(self) -> tuple[int, ...]:
        """The GPU indices; empty for a CPU slot."""
        return tuple(device for device in self._held if device != CPU)

    def release(self) -> None:
        """Free the slots for the next run."""
        held, self._held = self._held, ()
        if held:
            self._slots.release(held)
