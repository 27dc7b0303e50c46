"""From the strings in a row to a private view that YOLO can train on: fetch, recognise, check, split, link."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.core.dataset import DatasetOrder, DatasetRef, PreparedDataset, SplitRequest, Task
from trainer.core.errors import DatasetError
from trainer.core.events import Event, Warned
from trainer.core.job import JsonObject
from trainer.core.stop import StopSignal
from trainer.datasets.fetch import Fetched, Fetcher
from trainer.datasets.found import SPLITS, Admit, Found, Report, Sample, shown
from trainer.datasets.images import Facts
from trainer.datasets.recognise import recognise
from trainer.datasets.reference import Roots, parse_reference
from trainer.datasets.split import HOW_TO_ASK, stratified
from trainer.datasets.view import Item, write_data_yaml, write_view
from trainer.datasets.yolo_format import Tree

if TYPE_CHECKING:
    from trainer.datasets.labels import Labels

MOST_IN_SUMMARY = 200  # classes listed in the summary
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class FetchedDatasets:
    """The `Datasets` port: what `fetcher` brings to disk is recognised, checked and linked into a view."""

    fetcher: Fetcher
    roots: Roots
    datasets_bucket: str
    storage_base_url: str | None = None

    def prepare(self, order: DatasetOrder, view: Path, stop: StopSignal, on_event: OnEvent) -> PreparedDataset:
        """See `core.ports.Datasets`. Each warning is also an event."""
        view.mkdir(parents=True)
        report = Report()
        founds = []
        for number, source in enumerate(order.sources):
            fetched = self.fetcher.fetch(self._ref(source), view / f"source{number}", stop, on_event)
            report.extend(fetched.findings)
            founds.append(recognise(self._tree(fetched, stop), entry_of(fetched), report))
        prepared = build(order, founds, view, stop, report)
        for finding in prepared.findings:
            if finding.level == "warning":
                on_event(Warned(code=finding.code, message=finding.message))
        return prepared

    def prefetch(self, order: DatasetOrder, stop: StopSignal) -> None:
        """See `core.ports.Datasets`."""
        for source in order.sources:
            self.fetcher.prefetch(self._ref(source), stop)

    def _ref(self, source: str) -> DatasetRef:
        return parse_reference(
            source, dataset_root=self.roots.dataset_root, datasets_bucket=self.datasets_bucket,
            storage_base_url=self.storage_base_url,
        )

    def _tree(self, fetched: Fetched, stop: StopSignal) -> Tree:
        root = fetched.root.resolve()
        admit = inside(root) if fetched.is_private else self.roots.admit
        return Tree(root, fetched.is_private, admit, stop)


def entry_of(fetched: Fetched) -> Path | None:
    return fetched.root.resolve() / fetched.entry if fetched.entry else None


def inside(root: Path) -> Admit:
    """Admits what lies below `root` after following symlinks."""

    def admit(path: Path) -> Path:
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise DatasetError(f"{shown(path.name)} does not exist in the dataset.") from None
        if not real.is_relative_to(root):
            raise DatasetError(f"{shown(path.name)} leads outside the dataset.")
        return real

    return admit


def build(
    order: DatasetOrder, founds: Sequence[Found], view: Path, stop: StopSignal, report: Report,
) -> PreparedDataset:
    """Check a recognised dataset and link it into `view`. Raises `DatasetError` with everything that is wrong."""
    return _Build(order, founds[0], stop, report).into(view)


class _Build:
    def __init__(self, order: DatasetOrder, found: Found, stop: StopSignal, report: Report) -> None:
        self._order, self._found, self._stop, self._report = order, found, stop, report
        report.extend(found.findings)

    def into(self, view: Path) -> PreparedDataset:
        from trainer.datasets import validate

        report, samples = self._report, self._found.samples
        if not samples:
            report.error("no-images", "The dataset has no images.")
            report.raise_errors()
        facts = validate.inspect(samples, report, self._stop)
        texts = self._texts(samples)
        task = self._task(texts)
        names, labels = self._labels(samples, texts, task)
        samples = self._split(samples, labels)
        validate.duplicates(samples, facts, report)
        images, per_class = self._count(samples, labels, len(names))
        validate.balance(names, per_class, report)
        report.raise_errors()
        write_view(view, _items(samples, labels, facts), self._stop)
        data = write_data_yaml(view, names, images, self._found.kpt_shape, self._found.flip_idx)
        fingerprint = _fingerprint(samples, labels, facts, names)
        return PreparedDataset(
            root=view, data=data, task=task, names=names, images=images, fingerprint=fingerprint,
            findings=report.findings,
            summary=self._summary(task, names, images, per_class, facts, fingerprint),
        )

    def _texts(self, samples: Sequence[Sample]) -> list[bytes]:
        from trainer.datasets.labels import LARGEST_LABEL

        texts = []
        for number, sample in enumerate(samples):
            if number % 256 == 0:
                self._stop.raise_if_set()
            text = sample.text or b""
            if sample.label:
                with Path(sample.label).open("rb") as file:
                    text = file.read(LARGEST_LABEL + 1)
                if len(text) > LARGEST_LABEL:
                    text = b""
                    self._report.error(
                        "label-size", f"{{n}} label files are larger than {LARGEST_LABEL >> 20} MiB", sample.name,
                    )
            texts.append(text)
        return texts

    def _task(self, texts: Sequence[bytes]) -> Task:
        from trainer.datasets.labels import column_counts, guess_task

        found = self._found
        if self._order.task:
            return self._order.task
        if found.task or found.kpt_shape:
            return found.task or Task.POSE
        counts = column_counts(texts)
        task = guess_task(counts)
        if set(counts) == {9}:
            self._report.warning(
                "task-ambiguous",
                "All labels have four corners, which is segment or obb; segment was taken: "
                'for oriented boxes set "task": "obb" in the configuration',
            )
        return task

    def _labels(self, samples: Sequence[Sample], texts: list[bytes], task: Task) -> tuple[tuple[str, ...], Labels]:
        from trainer.datasets.labels import Shape, check, class_numbers

        found = self._found
        if task is Task.POSE and not found.kpt_shape:
            self._report.error(
                "kpt-shape", "The YAML has no kpt_shape, which pose needs: kpt_shape: [number of keypoints, 2 or 3].",
            )
        names, ids = found.names, found.ids
        if names is None:
            highest = max(class_numbers(texts), default=-1)
            names = tuple(f"class{number}" for number in range(min(highest, 9999) + 1)) or ("class0",)
            self._report.warning(
                "names-missing", "The dataset does not name its classes; class0, class1, … were used",
            )
        ids = ids or tuple(range(len(names)))
        shape = Shape(
            task=task, classes={number: index for index, number in enumerate(ids)}, count=len(names),
            keypoints=found.kpt_shape,
        )
        where = [sample.label.rpartition("/")[2] if sample.label else sample.name for sample in samples]
        labels = check(texts, where, shape, self._report)
        return names, labels

    def _split(self, samples: list[Sample], labels: Labels) -> list[Sample]:
        present = {sample.split for sample in samples}
        if "val" in present and "train" in present:
            return samples
        request = self._order.split or self._found.split
        if request is None:
            self._report.error("val-missing", f"The dataset has no val split; {HOW_TO_ASK}.")
            return [replace(s, split=s.split or "train") for s in samples]
        return self._drawn(samples, labels, request)

    def _drawn(self, samples: list[Sample], labels: Labels, request: SplitRequest) -> list[Sample]:
        strata = _rarest_class(len(samples), labels)
        open_to = {i: s for i, s in enumerate(samples) if s.split in (None, "train")}
        try:
            drawn = stratified({s.name: strata[i] for i, s in open_to.items()}, request)
        except DatasetError as error:
            self._report.error("split-impossible", str(error))
            return [replace(s, split=s.split or "train") for s in samples]
        if "test" in {s.split for s in samples}:
            drawn = {name: "val" if split == "test" else split for name, split in drawn.items()}
        self._report.note(
            "split-drawn", f"The images were split: {request.train_ratio:g} for train, seed {request.seed}",
        )
        return [replace(s, split=drawn[s.name]) if i in open_to else s for i, s in enumerate(samples)]

    def _count(
        self, samples: Sequence[Sample], labels: Labels, classes: int,
    ) -> tuple[dict[str, int], dict[str, list[int]]]:
        import numpy as np

        from trainer.datasets import validate

        number = np.array([SPLITS.index(sample.split or "train") for sample in samples])
        has_rows = np.zeros(len(samples), bool)
        has_rows[labels.file] = True
        images = {split: int(np.count_nonzero(number == i)) for i, split in enumerate(SPLITS)}
        labelled = {split: int(np.count_nonzero((number == i) & has_rows)) for i, split in enumerate(SPLITS)}
        per_class = {
            split: np.bincount(labels.cls[number[labels.file] == i], minlength=classes).tolist()
            for i, split in enumerate(SPLITS) if images[split]
        }
        validate.check_splits(images, labelled, Task.DETECT, self._report)
        validate.background(samples, has_rows, self._report)
        return validate.splits_in_order(images), per_class

    def _summary(
        self, task: Task, names: Sequence[str], images: Mapping[str, int], per_class: Mapping[str, Sequence[int]],
        facts: Sequence[Facts], fingerprint: str,
    ) -> JsonObject:
        from trainer.datasets import validate

        return {
            "task": task.value,
            "images": dict(images),
            "classes": len(names),
            "labels": {
                split: {names[i]: count for i, count in enumerate(counts[:MOST_IN_SUMMARY])}
                for split, counts in per_class.items()
            },
            "fingerprint": fingerprint,
            "image_sizes": validate.sizes(facts),
            "findings": [
                {"level": f.level, "code": f.code, "message": f.message, "count": f.count} for f in self._report.findings
            ],
        }


def _items(samples: Sequence[Sample], labels: Labels, facts: Sequence[Facts]) -> list[Item]:
    return [
        Item(sample.split or "train", sample.image, sample.name, text, "", _how(sample, fact))
        for sample, text, fact in zip(samples, labels.texts, facts, strict=True)
    ]


def _how(sample: Sample, fact: Facts) -> str:
    if fact.is_loose:
        return "copy"
    return "hardlink" if sample.owned else "symlink"


def _rarest_class(count: int, labels: Labels) -> list[int]:
    """For each file the class in it that is rarest in the whole dataset; -1 for a file without rows."""
    import numpy as np

    result = np.full(count, -1, np.int64)
    if len(labels.cls):
        often = np.bincount(labels.cls)
        order = np.argsort(-often[labels.cls], kind="stable")  # the rarest is written last and stays
        result[labels.file[order]] = labels.cls[order]
    return [int(value) for value in result]


def _fingerprint(samples: Sequence[Sample], labels: Labels, facts: Sequence[Facts], names: Sequence[str]) -> str:
    """A sha-256 over class names and, per image in order of split and name, its content and its labels."""
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
    rows = sorted((s.split or "", s.name, i) for i, s in enumerate(samples))
    for split, name, index in rows:
        digest.update(f"\0{split}/{name}\0".encode("utf-8", "surrogateescape"))
        digest.update(facts[index].digest)
        digest.update(labels.texts[index])
    return digest.hexdigest()
