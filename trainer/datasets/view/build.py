"""Build the view of a checked dataset for one training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.core.dataset import DatasetOrder, PreparedDataset, Task
from trainer.core.stop import StopSignal
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.checks.check import Checked, summary
from trainer.datasets.findings import Report
from trainer.datasets.images.facts_cache import identity
from trainer.datasets.samples import Sample
from trainer.datasets.view.label_table import write_label_tables
from trainer.datasets.view.links import folder_names, placed, write_data_yaml, write_view


def build(
    order: DatasetOrder, checked: Checked, view: Path, stop: StopSignal, report: Report, pixels: PixelCache | None
) -> PreparedDataset:
    """Link a checked dataset into the new folder `view`.

    Raises `DatasetError` with all errors in `report`, `MachineFailed` or `Stopped`.
    """
    report.raise_errors()
    folders = folder_names(checked.names) if checked.task is Task.CLASSIFY else []
    samples = placed(checked.samples, folders)
    # every split has a folder for every class, because Ultralytics numbers classes by existing folders
    write_view(view, samples, stop, empty=[f"{split}/{folder}" for split in checked.images for folder in folders])
    data = view
    if checked.task is not Task.CLASSIFY:
        write_label_tables(view, samples, checked.rows)
        if pixels:
            pixels.link(view, order.imgsz, _scaled_down(samples, order.imgsz), order.owner)
        data = write_data_yaml(view, checked.names, checked.images, checked.kpt_shape, checked.flip_idx)
    return PreparedDataset(
        root=view,
        data=data,
        task=checked.task,
        names=checked.names,
        images=checked.images,
        fingerprint=checked.fingerprint,
        findings=report.findings,
        summary=summary(checked, report),
    )


def _scaled_down(samples: Sequence[Sample], imgsz: int) -> dict[str, str]:
    """Return the identities of the images that the training scales down, by place. Copied images are left out."""
    found = {}
    for sample in samples:
        fact = sample.facts
        if max(fact.width, fact.height) > imgsz and not fact.has_trailing_data:
            key = identity(sample.image, is_owned=sample.owned)
            found.update({sample.place: key} if key else {})
    return found
