"""The job that recognizes, checks and converts the fetched sources of a dataset, and builds the view of a run."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.core.dataset import DatasetOrder, Finding, SplitRequest, Task
from trainer.core.job import JsonObject
from trainer.core.stop import StopSignal
from trainer.datasets.data_yaml import MAX_CLASSES, MAX_NAME_LENGTH
from trainer.datasets.decoder import Access, Room
from trainer.datasets.findings import Report, finding_of, require_possible
from trainer.datasets.images.facts_cache import FactsCache
from trainer.datasets.samples import SPLITS
from trainer.datasets.source.json_lines import read_lines, write_lines
from trainer.datasets.source.roots import Roots

if TYPE_CHECKING:
    from trainer.datasets.checks.check import Checked

FACTS, SCALED_DOWN, SHEET = "facts", "scaled-down.jsonl", "sheet.png"  # names in `made`
LARGEST_SUMMARY = 1 << 20  # characters
MOST_FINDINGS = 1000  # each code is one finding, or one for each archive of a merged dataset
_FINGERPRINT = re.compile("[0-9a-f]{64}")
_PLACE = re.compile(rf"images/({'|'.join(SPLITS)})/[^/\x00-\x1f]{{1,255}}")


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """The result of the checks. `drawn` is the number of samples on the contact sheet."""

    task: Task
    names: tuple[str, ...]
    images: Mapping[str, int]
    fingerprint: str
    findings: tuple[Finding, ...]
    summary: JsonObject
    drawn: int

    def __post_init__(self) -> None:
        """Raise ValueError for values that the job does not return."""
        if len(self.names) > MAX_CLASSES * 2 or any(len(name) > 2 * MAX_NAME_LENGTH for name in self.names):
            raise ValueError("too many or too long names of classes")
        if not set(self.images) <= set(SPLITS) or any(not 0 <= count < 1 << 31 for count in self.images.values()):
            raise ValueError("impossible numbers of images")
        if not _FINGERPRINT.fullmatch(self.fingerprint) or not 0 <= self.drawn < 1000:
            raise ValueError("impossible fingerprint or number of samples")
        if len(json.dumps(self.summary, allow_nan=False)) > LARGEST_SUMMARY:
            raise ValueError("the summary is too large")
        if len(self.findings) > MOST_FINDINGS:
            raise ValueError("too many findings")
        for finding in self.findings:
            require_possible(finding)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A fetched source. `root` has no links. `entry` is a file in `root`, or None."""

    root: str
    entry: str | None
    is_private: bool
    findings: tuple[JsonObject, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Check the sources of an order. If `view` is given, build the view in this empty folder.

    `roots` are the folders that a row may name (see `roots_as_json`); `readable` are the parts of them that this job
    reads. `made` is a folder for other results: FACTS, with known facts, if `has_facts`; SHEET, if `draws_sheet`;
    SCALED_DOWN, which lists the images that the training scales down, if there is a view.
    """

    order: JsonObject
    sources: tuple[JsonObject, ...]
    roots: JsonObject
    readable: tuple[str, ...]
    made: str
    view: str | None = None
    has_facts: bool = False
    draws_sheet: bool = False

    @property
    def access(self) -> Access:
        # a source can contain folders of the service, whose names can be listed but whose files are not readable
        names = tuple(str(source["root"]) for source in self.sources)
        return Access(read=self.readable, names=names, fill=(self.made,), write=(self.view,) if self.view else ())

    def run(self, stop: StopSignal, room: Room) -> Inspected:
        from trainer.datasets.checks.check import summary
        from trainer.datasets.view.build import build, scaled_down

        order, report, made = _order(self.order), Report(), Path(self.made)
        checked = self._checked(order, report, stop)
        drawn = _draw(checked, made / SHEET) if self.draws_sheet else 0
        if self.view:
            with _without_garbage_collector():
                samples = build(checked, Path(self.view), stop, report)
            write_lines(made / SCALED_DOWN, scaled_down(samples, order.imgsz))
        return Inspected(
            task=checked.task,
            names=checked.names,
            images=checked.images,
            fingerprint=checked.fingerprint,
            findings=report.findings,
            summary=summary(checked, report),
            drawn=drawn,
        )

    def _checked(self, order: DatasetOrder, report: Report, stop: StopSignal) -> Checked:
        from trainer.datasets.checks.check import check_all
        from trainer.datasets.formats.detect import recognize
        from trainer.datasets.formats.source_tree import Tree

        shared = _roots(self.roots)
        datasets = []
        for source in (Source(**values) for values in self.sources):
            report.extend(map(finding_of, source.findings))
            root = Path(source.root)
            roots = Roots(root, hidden_names=True) if source.is_private else shared
            tree = Tree(root, roots.admit, report, stop, is_owned=source.is_private)
            datasets.append(recognize(tree, root / source.entry if source.entry else None, order.task, report))
        with _without_garbage_collector():
            facts = FactsCache(Path(self.made) / FACTS) if self.has_facts else None
            return check_all(order, datasets, stop, report, facts)


def read_scaled_down(made: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield the place in the view, the path and the ownership of each image in SCALED_DOWN.

    Raises ValueError or TypeError for content that the job does not write.
    """
    for place, image, is_owned in read_lines(made / SCALED_DOWN):
        if not _PLACE.fullmatch(place):
            raise ValueError(f"{SCALED_DOWN} contains an unsafe place")
        yield place, str(image), bool(is_owned)


def _draw(checked: Checked, path: Path) -> int:
    from trainer.datasets.view.contact_sheet import draw_sheet  # only a command needs the fonts

    return draw_sheet(checked, path)


def roots_as_json(roots: Roots) -> JsonObject:
    """Return the JSON object for `Inspect.roots`."""
    folders = {"extra": roots.extra, "private": roots.private}
    return {
        "dataset_root": str(roots.dataset_root),
        "hidden_names": roots.hidden_names,
        **{name: list(map(str, paths)) for name, paths in folders.items()},
    }


def _roots(values: Mapping[str, Any]) -> Roots:
    folders = {name: tuple(map(Path, values[name])) for name in ("extra", "private")}
    return Roots(Path(values["dataset_root"]), hidden_names=values["hidden_names"], **folders)


def _order(values: Mapping[str, Any]) -> DatasetOrder:
    split, task = values["split"], values["task"]
    return DatasetOrder(
        **{**values, "sources": tuple(values["sources"])}
        | {"split": SplitRequest(**split) if split else None, "task": Task(task) if task else None}
    )


@contextmanager
def _without_garbage_collector() -> Iterator[None]:
    """Disable the garbage collector, which would traverse 100,000 samples many times."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
