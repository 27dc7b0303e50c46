"""What the recognizers of all formats agree on: the samples, names and findings of a dataset, before anything is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from trainer.core.dataset import Finding, SplitRequest, Task
from trainer.core.errors import DatasetError, raise_if_disk_is_broken
from trainer.core.text import printable

SPLITS = ("train", "val", "test")
EXAMPLES = 5
Admit: TypeAlias = Callable[[Path], Path]
"""The real path of a file or folder that may be read; raises `DatasetError` for one that may not."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its labels. `name` is unique in its dataset, relative, with `/`; `split` None: not decided yet.

    Labels are the YOLO file `label`, or `text` in the same format where they were converted, or `class_id` for
    classification. `owned`: the image is in our own cache, not in the user's folder. `key` is what an annotations file
    calls the image.
    """

    image: str
    name: str
    split: str | None
    label: str | None = None
    text: bytes | None = None
    class_id: int | None = None
    owned: bool = False
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A recognized dataset. `ids[i]` is the number by which label files call `names[i]`; None: count from 0.

    `names` None: nothing names the classes, of which there are at least `count`. `split` is what the dataset itself says about splitting.
    """

    samples: list[Sample]
    names: tuple[str, ...] | None
    ids: tuple[int, ...] | None = None
    count: int = 0
    task: Task | None = None
    kpt_shape: tuple[int, int] | None = None
    flip_idx: tuple[int, ...] | None = None
    findings: tuple[Finding, ...] = ()
    split: SplitRequest | None = None


@dataclass
class _Tally:
    level: Literal["error", "warning", "note"]
    message: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Report:
    """Everything noticed so far; what happens often is one finding with a count and up to five examples."""

    def __init__(self) -> None:
        self._tallies: dict[str, _Tally] = {}
        self._others: list[Finding] = []

    def add(
        self,
        level: Literal["error", "warning", "note"],
        code: str,
        message: str,
        example: str = "",
        count: int = 1,
    ) -> None:
        """Note something. `{n}` in the message is replaced by the count; further calls with the code only count."""
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
        """Whether one of these was noticed."""
        return any(code in self._tallies for code in codes)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Errors first, then warnings, then notes."""
        mine = [_finding(code, tally) for code, tally in self._tallies.items()]
        return tuple(sorted([*self._others, *mine], key=lambda f: ("error", "warning", "note").index(f.level)))

    def raise_errors(self) -> None:
        """Raise `DatasetError` with every error found, if any."""
        problems = [finding.message for finding in self.findings if finding.level == "error"]
        if problems:
            raise DatasetError(problems)


def _finding(code: str, tally: _Tally) -> Finding:
    message = tally.message.replace("{n}", str(tally.count))
    if tally.examples:
        more = ", …" if tally.count > len(tally.examples) else ""
        message = f"{message} ({', '.join(tally.examples)}{more})"
    return Finding(
        level=tally.level,
        code=code,
        message=message,
        count=tally.count,
        examples=tuple(tally.examples),
    )


def read_file(path: Path | str, largest: int) -> bytes:
    """All of a file of the dataset's. Raises `DatasetError` when it cannot be read or has more than `largest` bytes."""
    name = printable(Path(path).name)
    try:
        with Path(path).open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise_if_disk_is_broken(error, name)
        raise DatasetError(f"{name} cannot be read: {error.strerror}.") from None
    if len(data) > largest:
        raise DatasetError(f"{name} is larger than {largest >> 20} MiB, which is more than such a file may have.")
    return data
