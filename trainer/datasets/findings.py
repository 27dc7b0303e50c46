"""Findings about a dataset: errors, warnings and notes, one per code, with a count and examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from trainer.core.dataset import Finding
from trainer.core.errors import DatasetError
from trainer.core.text import printable

EXAMPLES = 5


@dataclass
class _Tally:
    level: Literal["error", "warning", "note"]
    message: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Report:
    """Collects findings. Each code becomes one finding with a count and up to five examples."""

    def __init__(self) -> None:
        self._tallies: dict[str, _Tally] = {}
        self._others: list[Finding] = []

    def add(
        self, level: Literal["error", "warning", "note"], code: str, message: str, example: str = "", count: int = 1
    ) -> None:
        """Add a finding. `{n}` in the message becomes the count. The first message of a code is kept."""
        tally = self._tallies.setdefault(code, _Tally(level, message))
        tally.count += count
        if example and len(tally.examples) < EXAMPLES:
            tally.examples.append(printable(example))

    def error(self, code: str, message: str, example: str = "", count: int = 1) -> None:
        self.add("error", code, message, example, count)

    def warning(self, code: str, message: str, example: str = "", count: int = 1) -> None:
        self.add("warning", code, message, example, count)

    def note(self, code: str, message: str, example: str = "", count: int = 1) -> None:
        self.add("note", code, message, example, count)

    def extend(self, findings: Iterable[Finding]) -> None:
        self._others += findings

    def has(self, *codes: str) -> bool:
        """Return whether one of these codes was reported."""
        return any(code in self._tallies for code in codes)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings: errors, then warnings, then notes."""
        mine = [_finding(code, tally) for code, tally in self._tallies.items()]
        return tuple(sorted([*self._others, *mine], key=lambda f: ("error", "warning", "note").index(f.level)))

    def raise_errors(self) -> None:
        """Raise `DatasetError` with all errors, if there are any."""
        problems = [finding.message for finding in self.findings if finding.level == "error"]
        if problems:
            raise DatasetError(problems)


def _finding(code: str, tally: _Tally) -> Finding:
    message = tally.message.replace("{n}", str(tally.count))
    if tally.examples:
        more = ", …" if tally.count > len(tally.examples) else ""
        message = f"{message} ({', '.join(tally.examples)}{more})"
    return Finding(level=tally.level, code=code, message=message, count=tally.count, examples=tuple(tally.examples))
