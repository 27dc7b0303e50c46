"""Merge several sources into one dataset: classes with the same name are one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.core.dataset import SplitRequest, Task
from trainer.datasets.findings import Report
from trainer.datasets.samples import RecognizedDataset, Sample


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a dataset: its samples, and the class index of each class number in its labels."""

    samples: list[Sample]
    classes: Mapping[int, int]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """All sources as one dataset. `names` is in order of first appearance."""

    parts: tuple[Part, ...]
    names: tuple[str, ...]
    kpt_shape: tuple[int, int] | None
    flip_idx: tuple[int, ...] | None
    split: SplitRequest | None

    @property
    def samples(self) -> Iterator[Sample]:
        return (sample for part in self.parts for sample in part.samples)


def merge(datasets: Sequence[RecognizedDataset], task: Task, report: Report) -> Merged:
    """Return the sources as one dataset. Each source must have class names. Contradictions go into `report`."""
    names: list[str] = []
    parts = []
    for number, found in enumerate(datasets):
        own = found.names or ()
        places = _places(names, own)
        samples = found.samples
        if len(datasets) > 1:
            samples = [_moved(sample, number, places) for sample in samples]
        parts.append(Part(samples=samples, classes=dict(zip(found.ids or range(len(own)), places, strict=True))))
    if task is Task.POSE and len({found.kpt_shape for found in datasets}) > 1:
        report.add("merge_keypoints")
    flips = {found.flip_idx for found in datasets}
    return Merged(
        parts=tuple(parts),
        names=tuple(names),
        kpt_shape=datasets[0].kpt_shape,
        flip_idx=flips.pop() if len(flips) == 1 else None,
        split=next((found.split for found in datasets if found.split), None),
    )


def _moved(sample: Sample, source: int, places: Sequence[int]) -> Sample:
    class_id = None if sample.class_id is None else places[sample.class_id]
    return sample._replace(name=f"{source}/{sample.name}", class_id=class_id)


def _places(names: list[str], own: Sequence[str]) -> list[int]:
    """Return the index in `names` of each class of a source; new names are appended.

    Two classes with the same name in one source stay separate.
    """
    known: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        known.setdefault(name, []).append(index)
    places: list[int] = []
    for name in own:
        if not known.get(name):
            known[name] = [len(names)]
            names.append(name)
        places.append(known[name].pop(0))
    return places
