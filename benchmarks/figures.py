"""The lines of the table that `make bench` prints."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table. `measured` and `peer` (the compared program) are texts with units.

    `why` explains a missed target.
    """

    what: str
    target: str
    measured: str
    met: bool
    peer: str = ""
    why: str = ""

    def line(self) -> str:
        verdict = "met" if self.met else f"missed: {self.why}" if self.why else "missed"
        return f"| {self.what} | {self.target} | {self.measured} | {self.peer} | {verdict} |"


HEADER = "| figure | target | measured | compared with | |\n|---|---|---|---|---|"


def middle(values: list[float], unit: str = "s", digits: int = 2) -> str:
    """Return the median as text, with the range if there are several values."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{median(values):.{digits}f} {unit}{spread}"
