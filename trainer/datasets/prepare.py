"""Prepare a dataset: fetch its sources, recognize their formats, check them, and build a private view."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.core.dataset import DatasetOrder, Finding, PreparedDataset
from trainer.core.events import Event, Phase, PhaseStarted, Warned
from trainer.core.job import JsonObject
from trainer.core.stop import StopSignal
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.findings import Report
from trainer.datasets.formats.detect import recognize
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.images.facts_cache import FactsCache
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import Roots, owner_folder, parse_reference
from trainer.datasets.view.links import VIEW, new_folder
from trainer.disk.removal import remove_tree

if TYPE_CHECKING:
    from trainer.datasets.checks.check import Checked

OnEvent = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of `check`. `drawn` is the number of samples on the contact sheet."""

    findings: tuple[Finding, ...]
    summary: JsonObject
    drawn: int


@dataclass(frozen=True)
class FetchedDatasets:
    """Implements the port `Datasets`: sources are fetched, recognized, checked and linked into a view.

    `allowed_buckets` and `by_owner` limit what a row can name; see `source/reference.py`.
    `facts` and `pixels` are caches: images that did not change since an earlier run are not read or decoded again.
    """

    fetcher: Fetcher
    roots: Roots
    datasets_bucket: str
    storage_base_url: str | None = None
    allowed_buckets: tuple[str, ...] = ()
    by_owner: bool = False
    facts: FactsCache | None = None
    pixels: PixelCache | None = None

    def prepare(self, order: DatasetOrder, folder: Path, stop: StopSignal, on_event: OnEvent) -> PreparedDataset:
        """See `core.ports.Datasets`. Each warning is also an event."""
        from trainer.datasets.view.build import build

        report = Report()
        checked, readable = self._checked(order, folder, stop, report, on_event)
        with _without_garbage_collector():
            prepared = build(order, checked, folder / VIEW, stop, report, self.pixels)
        for finding in prepared.findings:
            if finding.level == "warning":
                on_event(Warned(code=finding.code, message=finding.message))
        return replace(prepared, readable=readable)

    def prefetch(self, order: DatasetOrder, stop: StopSignal) -> None:
        """See `core.ports.Datasets`. Facts about the images are saved for the next run."""
        with self.fetcher.cache.temporary() as folder:
            self._checked(order, folder, stop, Report(), lambda _: None)

    def discard(self, folder: Path, *, keep: bool = False) -> None:
        """See `core.ports.Datasets`."""
        if self.pixels:
            with contextlib.suppress(RecursionError):  # a hostile training can nest folders very deeply
                self.pixels.take_over(folder / VIEW)
        if not keep:
            with contextlib.suppress(OSError):  # remaining files are removed later
                remove_tree(folder)

    def check(
        self, order: DatasetOrder, folder: Path, stop: StopSignal, on_event: OnEvent, sheet: Path | None = None
    ) -> CheckResult:
        """Check a dataset like `prepare`, but return all findings. If `sheet` is given, draw samples into this file.

        `folder` is a new folder for fetched files; the caller removes it.
        Raises the same errors as `prepare`, but `DatasetError` only if the dataset cannot be checked at all.
        """
        from trainer.datasets.checks.check import summary
        from trainer.datasets.view.contact_sheet import draw_sheet

        report = Report()
        checked, _ = self._checked(order, folder, stop, report, on_event)
        drawn = draw_sheet(checked, sheet) if sheet else 0
        return CheckResult(findings=report.findings, summary=summary(checked, report), drawn=drawn)

    def _checked(
        self, order: DatasetOrder, folder: Path, stop: StopSignal, report: Report, on_event: OnEvent
    ) -> tuple[Checked, tuple[Path, ...]]:
        """Fetch, recognize and check all sources. Return the result and the folders that contain the files.

        Fetched files are kept as long as the new folder `folder` exists.
        """
        from trainer.datasets.checks.check import check_all  # this imports numpy, which an idle worker does not need

        new_folder(folder)
        datasets = []
        readable: dict[Path, None] = {}
        for number, source in enumerate(order.sources):
            ref = parse_reference(
                source,
                dataset_root=self.roots.dataset_root,
                datasets_bucket=self.datasets_bucket,
                storage_base_url=self.storage_base_url,
                allowed_buckets=self.allowed_buckets,
                folder=owner_folder(order.owner) if self.by_owner else None,
            )
            fetched = self.fetcher.fetch(ref, folder / f"source{number}", stop, on_event)
            report.extend(fetched.findings)
            root = fetched.root.resolve()
            roots = Roots(root, hidden_names=True) if fetched.is_private else self.roots
            readable |= dict.fromkeys((roots.dataset_root, *roots.extra))
            tree = Tree(root, roots.admit, report, stop, is_owned=fetched.is_private)
            entry = tree.root / fetched.entry if fetched.entry else None
            datasets.append(recognize(tree, entry, order.task, report))
        on_event(PhaseStarted(phase=Phase.CHECKING))
        with _without_garbage_collector():
            return check_all(order, datasets, stop, report, self.facts), tuple(readable)


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
