"""Parse label text of any style into rows of numbers, many files at once."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.core.dataset import Task
from trainer.datasets.findings import Report

CHUNK = 4096  # maximum number of texts parsed at once
CHUNK_BYTES = 16 << 20  # maximum size of the texts parsed at once, except for a single larger text


@dataclass(frozen=True)
class Rows:
    """Row r is line `line[r]` (from 1) of text `file[r]`. Its `cols[r]` numbers start at `values[start[r]]`."""

    values: NDArray[np.float64]
    start: NDArray[np.int64]
    cols: NDArray[np.int64]
    file: NDArray[np.int64]
    line: NDArray[np.int64]


# if a text contains other characters, texts are parsed one by one
_PLAIN = b"0123456789.eE+- \t\r\n"


@dataclass(frozen=True)
class _Layout:
    """The rows of plain texts: row r is line `line[r]` of text `file[r]` and has `cols[r]` numbers."""

    joined: bytes
    cols: NDArray[np.int64]
    file: NDArray[np.int64]
    line: NDArray[np.int64]


def _layout(texts: Sequence[bytes]) -> _Layout | None:
    """Return the rows of all texts, or None if a text has characters that are not in `_PLAIN`."""
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
    return _Layout(joined, of_line[rows], file, rows - first_lines[file] + 1)


def parse(texts: Sequence[bytes], names: Sequence[str], report: Report) -> tuple[Rows, NDArray[np.bool_]]:
    """Return the rows of label texts, and a mask of the texts that are not plain.

    A row with a value that is not a number is skipped and reported as an error. `names[i]` is the name of text i.
    """
    if (layout := _layout(texts)) and len(layout.cols):
        with contextlib.suppress(ValueError):  # a value such as `1.2.3`, `1-2` or `e` is not a number
            values = np.fromstring(layout.joined, np.float64, sep=" ")
            assert len(values) == layout.cols.sum()
            return Rows(values, starts(layout.cols), layout.cols, layout.file, layout.line), np.zeros(len(texts), bool)
    return _parse_each(texts, names, report)


def starts(cols: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of the first number of each row; `cols` holds the lengths of the rows."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(cols)])[:-1] if len(cols) else cols


def _parse_each(texts: Sequence[bytes], names: Sequence[str], report: Report) -> tuple[Rows, NDArray[np.bool_]]:
    tokens: list[bytes] = []
    cols: list[int] = []
    file: list[int] = []
    number: list[int] = []
    dirty = np.zeros(len(texts), bool)
    for index, text in enumerate(texts):
        clean = plain(text)
        # rewrite every text that Ultralytics would parse differently
        dirty[index] = clean is not text or b"_" in text or b"\x0b" in text or b"\x0c" in text
        for line_number, line in enumerate(clean.splitlines(), 1):
            parts = line.split()
            if parts:
                tokens += parts
                cols.append(len(parts))
                file.append(index)
                number.append(line_number)
    try:
        values = np.array(list(map(float, tokens)), np.float64)
    except ValueError:
        return _parse_each(
            [_numeric(text, name, report) for text, name in zip(texts, names, strict=True)], names, report
        )
    counts = np.array(cols, np.int64)
    return Rows(values, starts(counts), counts, np.array(file, np.int64), np.array(number, np.int64)), dirty


def _numeric(text: bytes, name: str, report: Report) -> bytes:
    """Return the text without invalid lines. Report each line with a value that is not a number as an error."""
    lines = plain(text).splitlines()
    for place, line in enumerate(lines):
        wrong = [token for token in line.split() if _number(token) is None]
        if wrong:
            lines[place] = b""
            report.add("label_text", f"{name} line {place + 1}: {wrong[0][:30].decode('utf-8', 'replace')}")
    return b"\n".join(lines)


def column_counts(texts: Sequence[bytes]) -> dict[int, int]:
    """Return the number of rows for each number of columns."""
    counts: Counter[int] = Counter()
    for part in chunks(texts):
        if layout := _layout(texts[part]):
            counts.update(
                dict(zip(*(found.tolist() for found in np.unique(layout.cols, return_counts=True)), strict=True))
            )
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
    """Return label text without byte order mark, and with spaces in place of commas and semicolons."""
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = text.decode("utf-16", errors="replace").encode("ascii", errors="replace")
    elif text.startswith(b"\xef\xbb\xbf"):
        text = text[3:]
    if b"," in text or b";" in text:
        text = text.replace(b",", b" ").replace(b";", b" ")
    return text


def class_numbers(texts: Sequence[bytes]) -> set[int]:
    """Return every class number at the start of a row. Other text is ignored here; `check` reports it as an error."""
    found: set[bytes] = set()
    for text in texts:
        found.update(line.split(None, 1)[0] for line in plain(text).splitlines() if line.strip())
    return {int(number) for token in found if (number := _number(token)) is not None and number == number // 1}


def flat(rows: Rows) -> NDArray[np.bool_]:
    """Return a mask of the polygons without width or without height."""
    place = np.arange(len(rows.values)) - np.repeat(rows.start, rows.cols)
    result = np.zeros(len(rows.cols), bool)
    for axis in (1, 0):  # x is at odd positions, y at even positions
        mine = (place > 0) & (place % 2 == axis)
        low = np.minimum.reduceat(np.where(mine, rows.values, np.inf), rows.start)
        high = np.maximum.reduceat(np.where(mine, rows.values, -np.inf), rows.start)
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
