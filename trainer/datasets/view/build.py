"""Build the view of a checked dataset for one training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.core.dataset import Task
from trainer.core.stop import StopSignal
from trainer.datasets.checks.check import Checked
from trainer.datasets.findings import Report
from trainer.datasets.samples import Sample
from trainer.datasets.view.label_table import write_label_tables
from trainer.datasets.view.links import folder_names, placed, write_data_yaml, write_view


def build(checked: Checked, view: Path, stop: StopSignal, report: Report) -> list[Sample]:
    """Link a checked dataset into the empty folder `view`. Return the samples with their places in the view.

    Raises `DatasetError` with all errors in `report`, `MachineFailed` or `Stopped`.
    """
    report.raise_errors()
    folders = folder_names(checked.names) if checked.task is Task.CLASSIFY else []
    samples = placed(checked.samples, folders)
    # every split has a folder for every class, because Ultralytics numbers classes by existing folders
    write_view(view, samples, stop, empty=[f"{split}/{folder}" for split in checked.images for folder in folders])
    if checked.task is not Task.CLASSIFY:
        write_label_tables(view, samples, checked.rows)
        write_data_yaml(view, checked.names, checked.images, checked.kpt_shape, checked.flip_idx)
    return samples


def scaled_down(samples: Sequence[Sample], imgsz: int) -> Iterator[tuple[str, str, bool]]:
    """Yield the place, the path and the ownership of the images that the training scales down, except copied images."""
    for sample in samples:
        fact = sample.facts
        is_decoded = sample.class_id is None and not fact.has_trailing_data
        if is_decoded and max(fact.width, fact.height) > imgsz:
            yield sample.place, sample.image, sample.owned
