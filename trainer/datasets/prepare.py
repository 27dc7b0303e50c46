"""Prepare a dataset: fetch its sources, recognize their formats, check them, and build a private view."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from trainer.core.dataset import DatasetOrder, PreparedDataset, Task
from trainer.core.errors import DatasetError
from trainer.core.events import Event, Phase, PhaseStarted, Warned
from trainer.core.stop import StopSignal
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.decoder import Decoder, answers_checked
from trainer.datasets.images.facts_cache import FactsCache, identity
from trainer.datasets.inspection import (
    FACTS,
    SHEET,
    Inspect,
    Inspected,
    Source,
    read_scaled_down,
    roots_as_json,
)
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.json_lines import opened
from trainer.datasets.source.reference import ReferenceRules, parse_reference
from trainer.datasets.view.links import DATA_YAML, VIEW, new_folder, view_errors
from trainer.disk.removal import remove_tree

LARGEST_SHEET = 64 << 20  # bytes
MOST_PIXELS = 300_000  # images; the decoded pixels of further images are not kept
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class FetchedDatasets:
    """Implements the port `Datasets`: sources are fetched, recognized, checked and linked into a view.

    `facts` and `pixels` are caches: images that did not change since an earlier run are not read or decoded again.
    `decode` executes the checks. `warm` prestarts the process for the next call of `decode`.
    """

    fetcher: Fetcher
    rules: ReferenceRules
    decode: Decoder
    facts: FactsCache | None = None
    pixels: PixelCache | None = None
    warm: Callable[[], object] = lambda: None

    def prepare(self, order: DatasetOrder, folder: Path, stop: StopSignal, on_event: OnEvent) -> PreparedDataset:
        """See `core.ports.Datasets`. Each warning is also an event."""
        view = folder / VIEW
        with self._inspected(order, folder, stop, on_event, view=view) as (found, job):
            data = view if found.task is Task.CLASSIFY else view / DATA_YAML
            if data.is_symlink() or not data.exists():
                raise ValueError(f"the view has no {data.name}")
            if self.pixels:
                self.pixels.link(view, order.imgsz, _identities(Path(job.made)), order.owner)
        for finding in found.findings:
            if finding.level == "warning":
                on_event(Warned(code=finding.code, message=finding.message))
        return PreparedDataset(
            root=view,
            data=data,
            task=found.task,
            names=found.names,
            images=found.images,
            fingerprint=found.fingerprint,
            findings=found.findings,
            summary=found.summary,
            readable=tuple(map(Path, job.readable)),
        )

    def prefetch(self, order: DatasetOrder, stop: StopSignal) -> None:
        """See `core.ports.Datasets`. Facts about the images are saved for the next run."""
        with (
            self.fetcher.cache.temporary() as folder,
            self._inspected(order, folder, stop, lambda _: None),
        ):
            pass

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
    ) -> Inspected:
        """Check a dataset like `prepare`, but return all findings. If `sheet` is given, draw samples into this file.

        `folder` is a new folder for fetched files; the caller removes it.
        Raises the same errors as `prepare`, but `DatasetError` only if the dataset cannot be checked at all.
        """
        with self._inspected(order, folder, stop, on_event, draws_sheet=bool(sheet)) as (found, job):
            if sheet:
                _copy_sheet(Path(job.made) / SHEET, sheet)
        return found

    @contextmanager
    def _inspected(
        self,
        order: DatasetOrder,
        folder: Path,
        stop: StopSignal,
        on_event: OnEvent,
        *,
        view: Path | None = None,
        draws_sheet: bool = False,
    ) -> Iterator[tuple[Inspected, Inspect]]:
        """Fetch and check all sources. Yield the result and the job. The files in `made` exist until the end of the block.

        Fetched files are kept as long as the new folder `folder` exists.
        """
        self.warm()  # at the same time as the download
        made = folder / "inspection"
        new_folder(folder)
        fetched = [
            self._fetched(source, order.owner, folder / f"source{n}", stop, on_event)
            for n, source in enumerate(order.sources)
        ]
        on_event(PhaseStarted(phase=Phase.CHECKING))
        with view_errors():
            for new in (made, view) if view else (made,):
                new.mkdir()
            if self.facts:
                self.facts.lend(order, made / FACTS)
        private = [source.root for source in fetched if source.is_private]
        shared = [source.root for source in fetched if not source.is_private]
        job = Inspect(
            order=asdict(order),
            sources=tuple(asdict(source) for source in fetched),
            roots=roots_as_json(self.rules.roots),
            readable=(*private, *self.rules.roots.open_parts(shared)),
            made=str(made),
            view=str(view) if view else None,
            has_facts=self.facts is not None,
            draws_sheet=draws_sheet,
        )
        try:
            found = self.decode(job, stop)
            if self.facts:
                self.facts.take_back(order, made / FACTS)
            with answers_checked():
                yield found, job
        finally:
            with contextlib.suppress(OSError):  # removed with `folder`
                remove_tree(made)

    def _fetched(self, text: str, owner: str | None, staging: Path, stop: StopSignal, on_event: OnEvent) -> Source:
        fetched = self.fetcher.fetch(parse_reference(text, self.rules, owner), staging, stop, on_event)
        return Source(
            root=str(fetched.root.resolve()),
            entry=str(fetched.entry) if fetched.entry else None,
            is_private=fetched.is_private,
            findings=tuple(map(asdict, fetched.findings)),
        )


def _identities(made: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the identity of each image that the training scales down."""
    for place, image, is_owned in islice(read_scaled_down(made), MOST_PIXELS):
        if key := identity(image, is_owned=is_owned):
            yield place, key


def _copy_sheet(drawn: Path, sheet: Path) -> None:
    with opened(drawn) as file:
        data = file.read(LARGEST_SHEET)
    try:
        sheet.write_bytes(data)
    except OSError as error:
        raise DatasetError(f"The contact sheet cannot be written to {sheet}: {error}.") from error
