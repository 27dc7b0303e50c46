"""Read the text of label files, within a memory limit."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.core.errors import DatasetError, raise_if_disk_is_broken
from trainer.core.stop import StopSignal
from trainer.datasets.findings import Report
from trainer.datasets.images.header import read_small
from trainer.datasets.labels.check import MAX_LABEL_BYTES
from trainer.datasets.samples import Sample

MAX_TOTAL_BYTES = 4 << 30  # limit for all label files of one source, in memory; Objects365 has 1.2 GB
CHECK_EVERY = 256  # number of files between two checks of the stop signal


def read_labels(samples: Sequence[Sample], report: Report, stop: StopSignal) -> list[Sample]:
    """Return the samples with the text of their label files. Unreadable files go into `report`.

    Raises `DatasetError` if the total size of the files exceeds the limit.
    """
    result = []
    size = 0
    for number, sample in enumerate(samples):
        if number % CHECK_EVERY == 0:
            stop.raise_if_set()
        read = sample._replace(text=_text(sample, sample.label, report)) if sample.label else sample
        result.append(read)
        size += len(read.text or b"")
        if size > MAX_TOTAL_BYTES:
            raise DatasetError(
                f"The label files have more than {MAX_TOTAL_BYTES >> 30} GiB. Split the dataset or simplify polygons."
            )
    return result


def _text(sample: Sample, path: str, report: Report) -> bytes:
    try:
        text = read_small(path, MAX_LABEL_BYTES + 1)
    except OSError as error:
        raise_if_disk_is_broken(error, sample.name)
        report.add("label_unreadable", f"{sample.name}: {error.strerror}")
        return b""
    if len(text) > MAX_LABEL_BYTES:
        report.add("label_size", sample.name, limit=MAX_LABEL_BYTES >> 20)
        return b""
    return text
