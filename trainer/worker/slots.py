"""The accelerators of this host, lent to runs for the time of their training."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

CPU = -1  # a slot without a GPU


class Slots:
    """One entry per slot: a GPU's index, or `CPU`. Safe between threads."""

    def __init__(self, devices: Sequence[int]) -> None:
        self._free = list(devices)
        self._changed = threading.Condition()
        self.total = len(devices)
        self.gpus = self.free_gpus

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def free_gpus(self) -> int:
        """How many GPUs a run could have now; a GPU with several slots counts once."""
        return len({*self._free} - {CPU})

    def take(self, count: int) -> SlotLoan:
        """Borrow a slot on each of `count` devices, the idlest first; fewer when fewer are free."""
        with self._changed:
            free = Counter(self._free)
            taken = sorted(free, key=lambda device: (-free[device], device))[:count]
            self._free = sorted((free - Counter(taken)).elements())
        return SlotLoan(self, tuple(sorted(taken)))

    def wait_for_free(self, seconds: float) -> bool:
        """Block until a slot is free, at most `seconds`; whether one is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._free), seconds)

    def give_back(self, devices: Sequence[int]) -> None:
        with self._changed:
            self._free = sorted([*self._free, *devices])
            self._changed.notify_all()


class SlotLoan:
    """Slots that a run holds, until it gives them back; giving back twice is harmless."""

    def __init__(self, slots: Slots, held: tuple[int, ...]) -> None:
        self._slots = slots
        self._held = held

    @property
    def gpus(self) -> tuple[int, ...]:
        """The GPU indices; empty on a CPU slot."""
        return tuple(device for device in self._held if device != CPU)

    def give_back(self) -> None:
        held, self._held = self._held, ()
        if held:
            self._slots.give_back(held)
