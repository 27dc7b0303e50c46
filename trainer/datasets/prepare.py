"""From the strings in a row to a private view that YOLO can train on: fetch, recognize, then build."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.core.dataset import DatasetOrder, DatasetRef, Finding, PreparedDataset
from trainer.core.errors import DatasetError, raise_if_disk_is_broken
from trainer.core.events import Event, Phase, PhaseStarted, Warned
from trainer.core.job import JsonObject
from trainer.core.stop import StopSignal
from trainer.core.text import printable
from trainer.datasets.cache.pixels import KeptPixels
from trainer.datasets.findings import Report
from trainer.datasets.formats.detect import recognize
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.images.facts_cache import FactsCache
from trainer.datasets.samples import Admit, Found
from trainer.datasets.source.fetch import Fetched, Fetcher
from trainer.datasets.source.reference import Roots, parse_reference
from trainer.datasets.view.links import new_view
from trainer.disk.removal import remove_tree

OnEvent = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class CheckUp:
    """What `check` found. `drawn` samples are on the contact sheet."""

    findings: tuple[Finding, ...]
    summary: JsonObject
    drawn: int

    @property
    def is_trainable(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)


@dataclass(frozen=True)
class FetchedDatasets:
    """The `Datasets` port: what `fetcher` brings to disk is recognized, checked and linked into a view.

    With `facts`, images that did not change since an earlier run are not read again; with `pixels`, not decoded.
    """

    fetcher: Fetcher
    roots: Roots
    datasets_bucket: str
    storage_base_url: str | None = None
    facts: FactsCache | None = None
    pixels: KeptPixels | None = None

    def prepare(self, order: DatasetOrder, view: Path, stop: StopSignal, on_event: OnEvent) -> PreparedDataset:
        """See `core.ports.Datasets`. Each warning is also an event."""
        from trainer.datasets.view.build import build  # numpy, which an idle daemon does without

        new_view(view)
        report = Report()
        founds = self.recognized(order, view, stop, report, on_event)
        on_event(PhaseStarted(phase=Phase.CHECKING))
        with _collector_at_rest():
            prepared = build(order, founds, view, stop, report, self.facts, self.pixels)
        for finding in prepared.findings:
            if finding.level == "warning":
                on_event(Warned(code=finding.code, message=finding.message))
        return prepared

    def prefetch(self, order: DatasetOrder, stop: StopSignal) -> None:
        """See `core.ports.Datasets`. What is found out about the images is kept, too."""
        from trainer.datasets.checks.check import check_all

        with self.fetcher.scratch() as view:
            new_view(view)
            report = Report()
            check_all(order, self.recognized(order, view, stop, report, lambda _: None), stop, report, self.facts)

    def discard(self, view: Path, *, keep: bool = False) -> None:
        """See `core.ports.Datasets`."""
        if self.pixels:
            with contextlib.suppress(RecursionError):  # the training nested folders in it on purpose
                self.pixels.take_over(view)
        if not keep:
            with contextlib.suppress(OSError):  # what stays is swept later
                remove_tree(view)

    def tidy(self) -> None:
        """Remove what crashed processes left. Raises MachineFailed or OSError."""
        self.fetcher.tidy()

    def check(
        self,
        order: DatasetOrder,
        staging: Path,
        stop: StopSignal,
        on_event: OnEvent,
        sheet: Path | None = None,
    ) -> CheckUp:
        """Look at a dataset as `prepare` would, for a person: everything found, and a picture of samples at `sheet`.

        `staging` is a folder that does not exist yet, for what has to be fetched; the caller removes it.
        Raises what `prepare` raises, but `DatasetError` only when there is no dataset to look at.
        """
        from trainer.datasets.checks.check import check_all, summary
        from trainer.datasets.view.contact_sheet import draw_sheet

        new_view(staging)
        report = Report()
        checked = check_all(order, self.recognized(order, staging, stop, report, on_event), stop, report, self.facts)
        drawn = draw_sheet(checked, sheet) if sheet else 0
        return CheckUp(findings=report.findings, summary=summary(checked, report), drawn=drawn)

    def recognized(
        self,
        order: DatasetOrder,
        view: Path,
        stop: StopSignal,
        report: Report,
        on_event: OnEvent,
    ) -> list[Found]:
        """Each source on disk and understood. What had to be fetched is kept while `view` exists."""
        founds = []
        for number, source in enumerate(order.sources):
            fetched = self.fetcher.fetch(self._ref(source), view / f"source{number}", stop, on_event)
            report.extend(fetched.findings)
            tree = self._tree(fetched, report, stop)
            entry = tree.root / fetched.entry if fetched.entry else None
            founds.append(recognize(tree, entry, order.task, report))
        return founds

    def _ref(self, source: str) -> DatasetRef:
        return parse_reference(
            source,
            dataset_root=self.roots.dataset_root,
            datasets_bucket=self.datasets_bucket,
            storage_base_url=self.storage_base_url,
        )

    def _tree(self, fetched: Fetched, report: Report, stop: StopSignal) -> Tree:
        root = fetched.root.resolve()
        admit = inside(root) if fetched.is_private else self.roots.admit
        return Tree(root, admit, report, stop, is_owned=fetched.is_private)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Python's collector would look through a hundred thousand samples again and again, none of which is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def inside(root: Path) -> Admit:
    """Admits what lies below `root` after following symlinks."""

    def admit(path: Path) -> Path:
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise_if_disk_is_broken(error, printable(path.name))
            raise DatasetError(f"{printable(path.name)} does not exist in the dataset.") from None
        if not real.is_relative_to(root):
            raise DatasetError(f"{printable(path.name)} leads outside the dataset.")
        return real

    return admit
