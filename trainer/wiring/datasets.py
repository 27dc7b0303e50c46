"""Sources of datasets and weights, and checks of requests and datasets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from trainer.core.dataset import DatasetOrder, DiskRef, Task
from trainer.core.errors import BadRequest, MachineFailed
from trainer.core.export_formats import PACKAGES
from trainer.core.job import RunRequest
from trainer.core.model import ModelFile, ModelRef
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.confined.process import ConfinedDecoder
from trainer.datasets.images.facts_cache import FactsCache
from trainer.datasets.inspection import Inspected
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import ReferenceRules, parse_reference
from trainer.datasets.source.roots import Roots
from trainer.remote.web import GuardedClient
from trainer.settings import Settings, process_environment
from trainer.training.exports import available_exports
from trainer.weights.model_folder import ModelFolder
from trainer.wiring.backend import Backend, open_backend
from trainer.wiring.host import GB, plan_parser

ANYWHERE = Path("/")


def build_datasets(
    settings: Settings, backend: Backend, opened: ExitStack, roots: Roots | None = None
) -> FetchedDatasets:
    """Return the adapter for the port `Datasets`. `roots` are the readable folders, by default those of a row."""
    root, rules = settings.datasets_folder, reference_rules(settings, roots)
    web = web_client(settings, rules)
    opened.callback(web.close)
    decode = ConfinedDecoder(environment=process_environment(), sandbox=settings.sandbox)
    opened.callback(decode.close)
    cache = ContentCache(root / ".cache", max_bytes=int(settings.dataset_cache_gb * GB))
    fetcher = Fetcher(rules=rules, cache=cache, web=web, store=backend.store, decode=decode)
    return FetchedDatasets(
        fetcher=fetcher,
        rules=rules,
        facts=FactsCache(root / ".cache" / "facts"),
        pixels=PixelCache(cache) if settings.fast_loader else None,
        decode=decode,
        warm=decode.warm if settings.warm_start else lambda: None,
    )


def web_client(settings: Settings, rules: ReferenceRules) -> GuardedClient:
    """Return the client for the URLs of a row. On the host of our storage, a row can name only objects of datasets."""
    return GuardedClient(
        allowed_hosts=settings.allowed_dataset_hosts,
        own_hosts=[urlsplit(rules.storage_url).netloc] if rules.storage_url else [],
        is_own_path=rules.is_object_path,
    )


def reference_rules(settings: Settings, roots: Roots | None = None) -> ReferenceRules:
    """Return the rules for the references of a row. `roots` are the readable folders, by default those of a row."""
    return ReferenceRules(
        roots or dataset_roots(settings),
        settings.supabase_datasets_bucket,
        storage_url=settings.supabase_url if settings.uses_supabase else None,
        allowed_buckets=settings.allowed_buckets,
        by_owner=settings.datasets_by_owner,
    )


def dataset_roots(settings: Settings) -> Roots:
    """Return the folders whose files a row can name, and the folders of the service, which no row can name."""
    home, root = settings.trainer_home, settings.datasets_folder
    own = ("children", "journal", "models", "queue.db", "queue.db-shm", "queue.db-wal", "runs", "storage", "uploaded")
    private = (
        *(home / name for name in (*own, "uploads")),
        *(root / name for name in (".cache", "datasets")),
        settings.runs_folder,
        settings.models_folder,
    )
    extra = tuple(Path(folder) for folder in settings.extra_dataset_roots)
    if not settings.uses_supabase:  # users who can write to the local queue can already read the files of this host
        extra = (*extra, ANYWHERE)
    return Roots(dataset_root=root, extra=extra, private=private, hidden_names=not settings.uses_supabase)


def check_request(settings: Settings, request: RunRequest) -> tuple[str, ...]:
    """Return the warnings about a request. Raise BadRequest if no worker can train the run.

    The workers of the local queue are on this host, so the exports, the dataset and the weights must be available here.
    """
    is_local = not settings.uses_supabase
    served = available_exports() if is_local else frozenset(PACKAGES)
    plan = plan_parser(settings)(request, exports_available=served)
    rules = reference_rules(settings)
    # a row from the command line has no owner
    references = [parse_reference(source, rules) for source in plan.sources]
    if is_local:
        _check_files(settings, rules.roots, [ref.path for ref in references if isinstance(ref, DiskRef)], plan.model)
    return plan.warnings


def _check_files(settings: Settings, roots: Roots, datasets: list[str], model: ModelRef) -> None:
    """Raise BadRequest that names every dataset and weights file that does not exist on this host."""
    checks: list[Callable[[], object]] = [partial(roots.admit, path) for path in datasets]
    if isinstance(model, ModelFile):
        checks.append(partial(_model_folder(settings).resolve, model, Task.DETECT, StopSignal()))
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except MachineFailed:
            pass  # a missing mount is not an error of the request: the run is retried
        except BadRequest as refused:
            problems += refused.problems
    if problems:
        raise BadRequest(problems)


def check_dataset(settings: Settings, reference: str, task: Task | None, sheet: Path | None) -> Inspected:
    """Check a dataset for the command line. The user can check every readable file."""
    order = DatasetOrder(sources=(reference,), task=task)
    stop = StopSignal()
    with ExitStack() as opened, tempfile.TemporaryDirectory() as folder:
        backend = opened.enter_context(open_backend(settings, stop))
        anywhere = Roots(dataset_root=settings.datasets_folder, extra=(ANYWHERE,), hidden_names=True)
        datasets = build_datasets(settings, backend, opened, anywhere)
        return datasets.check(order, Path(folder) / "staging", stop, lambda _: None, sheet)


def weights_on_disk(settings: Settings) -> list[str]:
    """Return the files in MODELS_DIR that a run can name."""
    return _model_folder(settings).on_disk()


def _model_folder(settings: Settings) -> ModelFolder:
    """Return the folder MODELS_DIR, without access to the store, the queue or the network."""
    return ModelFolder(
        settings.models_folder,
        store=None,
        artifacts_bucket="",
        run_of=lambda _: None,
        allow_download=False,
    )
