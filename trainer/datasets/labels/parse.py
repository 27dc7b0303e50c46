"""Parse label texts into rows of numbers, many files together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.core.dataset import Task
from trainer.datasets.findings import Report

CHUNK = 4096  # maximum number of texts that are parsed together
CHUNK_BYTES = 16 << 20  # bytes of all texts that are parsed together; a larger text is parsed separately


@dataclass(frozen=True)
class Rows:
    """Row r is line `line[r]` (from 1) of text `file[r]`. Its `cols[r]` numbers start at `values[start[r]]`."""

    values: NDArray[np.float64]
    start: NDArray[np.int64]
    cols: NDArray[np.int64]
    file: NDArray[np.int64]
    line: NDArray[np.int64]


# includes the letters of nan and inf; a text with other characters is cleaned first
_PLAIN = b"0123456789.eE+- \t\r\nnaif"


def _layout(texts: Sequence[bytes]) -> tuple[bytes, Rows] | None:
    """Return the joined texts and their rows without values, or None if a text has characters outside `_PLAIN`."""
    joined = b"\n".join([*texts, b""])
    if joined.translate(None, _PLAIN):
        return None
    if b"\r" in joined:
        return _layout([text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for text in texts])
    letters = np.frombuffer(joined, np.uint8)
    is_blank, is_end = letters <= ord(" "), letters == ord("\n")
    begins = ~is_blank
    begins[1:] &= is_blank[:-1]
    of_line = np.bincount(np.cumsum(is_end)[begins], minlength=np.count_nonzero(is_end))
    rows = np.flatnonzero(of_line)
    line_ends = np.flatnonzero(is_end)
    text_ends = np.cumsum([len(text) + 1 for text in texts]) - 1
    file = np.searchsorted(text_ends, line_ends[rows])
    first_lines = np.searchsorted(line_ends, np.concatenate([[-1], text_ends[:-1]]), side="right")
    cols = of_line[rows]
    return joined, Rows(np.zeros(0), starts(cols), cols, file, rows - first_lines[file] + 1)


def parse(texts: Sequence[bytes], names: Sequence[str], report: Report) -> tuple[Rows, NDArray[np.bool_]]:
    """Return the rows of label texts, and a mask of the texts that Ultralytics would parse differently.

    A row with a value that is not a number is skipped and reported as an error. `names[i]` is the name of text i.
    """
    if rows := _rows(texts):
        return rows, np.zeros(len(texts), bool)
    clean = [plain(text) for text in texts]
    changed = zip(texts, clean, strict=True)
    dirty = [new is not old or b"_" in old or b"\x0b" in old or b"\x0c" in old for old, new in changed]
    rows = _rows(clean) or _rows([_numeric(text, name, report) for text, name in zip(clean, names, strict=True)])
    assert rows is not None
    return rows, np.array(dirty, bool)


def _rows(texts: Sequence[bytes]) -> Rows | None:
    """Return the rows, or None if a text has characters outside `_PLAIN` or a value that is not a number."""
    layout = _layout(texts)
    if layout is None:
        return None
    joined, rows = layout
    try:
        values = np.fromstring(joined, np.float64, sep=" ") if len(rows.cols) else rows.values
    except ValueError:  # a value such as `1.2.3`, `1-2` or `e` is not a number
        return None
    assert len(values) == rows.cols.sum()
    return replace(rows, values=values)


def starts(cols: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of the first number of each row; `cols` holds the lengths of the rows."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(cols)])[:-1] if len(cols) else cols


def _numeric(text: bytes, name: str, report: Report) -> bytes:
    """Return the text with numbers as Python writes them. A line with a value that is not a number is reported."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        numbers = [_number(token) for token in line.split()]
        if None in numbers:
            wrong = line.split()[numbers.index(None)]
            report.add("label_text", f"{name} line {place + 1}: {wrong[:30].decode('utf-8', 'replace')}")
            numbers.clear()
        lines[place] = " ".join(map(repr, numbers)).encode()
    return b"\n".join(lines)


def column_counts(texts: Sequence[bytes]) -> dict[int, int]:
    """Return the number of rows for each number of columns."""
    counts: Counter[int] = Counter()
    for part in chunks(texts):
        if layout := _layout(texts[part]):
            counts.update(layout[1].cols.tolist())
        else:
            counts.update(len(line.split()) for text in texts[part] for line in plain(text).splitlines())
    counts.pop(0, None)
    return dict(counts)


def chunks(texts: Sequence[bytes]) -> Iterator[slice]:
    """Yield slices of at most CHUNK texts and CHUNK_BYTES bytes. A larger text gets its own slice."""
    begin = size = 0
    for index, text in enumerate(texts):
        if index > begin and (index - begin >= CHUNK or size + len(text) > CHUNK_BYTES):
            yield slice(begin, index)
            begin, size = index, 0
        size += len(text)
    if begin < len(texts):
        yield slice(begin, len(texts))


def guess_task(counts: Mapping[int, int]) -> Task:
    """Return the task `segment` if there are only polygons, otherwise the task `detect`."""
    return Task.SEGMENT if counts and all(is_polygon(columns) for columns in counts) else Task.DETECT


def is_polygon(columns: int) -> bool:
    """Return whether a row with this number of columns is a class and at least three corners."""
    return columns >= 7 and columns % 2 == 1


def plain(text: bytes) -> bytes:
    """Return label text without a byte order mark, and with spaces in place of commas and semicolons."""
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = text.decode("utf-16", errors="replace").encode("ascii", errors="replace")
    elif text.startswith(b"\xef\xbb\xbf"):
        text = text[3:]
    if b"," in text or b";" in text:
        text = text.replace(b",", b" ").replace(b";", b" ")
    return text


def class_numbers(texts: Sequence[bytes]) -> set[int]:
    """Return all class numbers at the start of a row. Other text is ignored here; `check` reports it as an error."""
    found: set[bytes] = set()
    for text in texts:
        found.update(line.split(None, 1)[0] for line in plain(text).splitlines() if line.strip())
    return {int(number) for token in found if (number := _number(token)) is not None and number == number // 1}


def flat(rows: Rows) -> NDArray[np.bool_]:
    """Return a mask of the polygons without width or without height."""
    place = np.arange(len(rows.values)) - np.repeat(rows.start, rows.cols)
    result = np.zeros(len(rows.cols), bool)
    for axis in (1, 0):  # x is at odd positions, y at even positions
        is_on_axis = (place > 0) & (place % 2 == axis)
        low = np.minimum.reduceat(np.where(is_on_axis, rows.values, np.inf), rows.start)
        high = np.maximum.reduceat(np.where(is_on_axis, rows.values, -np.inf), rows.start)
        result |= high <= low
    return result


def repeated(rows: Rows) -> NDArray[np.bool_]:
    """Return a mask of rows that can be copies of another row in their file: same length and same weighted sum."""
    place = np.arange(len(rows.values)) - np.repeat(rows.start, rows.cols)
    with np.errstate(all="ignore"):
        sums = np.add.reduceat(rows.values * np.sin(place + 1.0), rows.start)
    order = np.lexsort((sums, rows.cols, rows.file))
    same = np.zeros(len(order), bool)
    a, b = order[:-1], order[1:]
    same[b] = (rows.file[a] == rows.file[b]) & (rows.cols[a] == rows.cols[b]) & (sums[a] == sums[b])
    return same


def _number(token: bytes) -> float | None:
    try:
        return float(token)
    except ValueError:
        return None
