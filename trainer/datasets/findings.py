"""Findings about a dataset: errors, warnings and notes, one per code, with a count and examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from trainer.core.dataset import Finding
from trainer.core.errors import DatasetError
from trainer.core.text import printable

MAX_EXAMPLES = 5


class Report:
    """Collects findings. Each code becomes one finding with a count and up to five examples."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self._others: list[Finding] = []

    def add(
        self, level: Literal["error", "warning", "note"], code: str, message: str, example: str = "", count: int = 1
    ) -> None:
        """Add a finding. `{n}` in the message becomes the count. The first message of a code is kept."""
        known = self._found.get(code) or Finding(level=level, code=code, message=message, count=0)
        is_shown = example and len(known.examples) < MAX_EXAMPLES
        examples = (*known.examples, printable(example)) if is_shown else known.examples
        self._found[code] = replace(known, count=known.count + count, examples=examples)

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
        return not self._found.keys().isdisjoint(codes)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings: errors, then warnings, then notes."""
        found = [*self._others, *map(_with_numbers, self._found.values())]
        return tuple(sorted(found, key=lambda f: ("error", "warning", "note").index(f.level)))

    def raise_errors(self) -> None:
        """Raise `DatasetError` with all errors, if there are any."""
        problems = [finding.message for finding in self.findings if finding.level == "error"]
        if problems:
            raise DatasetError(problems)


def _with_numbers(finding: Finding) -> Finding:
    """Return the finding with its count and its examples in the message."""
    message = finding.message.replace("{n}", str(finding.count))
    if finding.examples:
        more = ", …" if finding.count > len(finding.examples) else ""
        message = f"{message} ({', '.join(finding.examples)}{more})"
    return replace(finding, message=message)
