"""What a benchmark found: one line of the table that `make bench` prints."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Figure:
    """`measured` and `peer` as text with their units; `why` says what a missed target would take."""

    what: str
    target: str
    measured: str
    met: bool
    peer: str = ""
    why: str = ""

    def line(self) -> str:
        verdict = "met" if self.met else f"missed: {self.why}" if self.why else "missed"
        return f"| {self.what} | {self.target} | {self.measured} | {self.peer} | {verdict} |"


HEADER = "| figure | target | measured | beside it | |\n|---|---|---|---|---|"


def middle(values: list[float], unit: str = "s", digits: int = 2) -> str:
    """The median, and the range when there are several."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{median(values):.{digits}f} {unit}{spread}"
