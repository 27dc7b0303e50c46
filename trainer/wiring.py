"""The only file that names every adapter: settings in, a working service out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from trainer import __version__, host
from trainer.core.dataset import DatasetOrder, DiskRef, Task
from trainer.core.errors import MachineFailed
from trainer.core.export_formats import PACKAGES
from trainer.core.job import RunRequest
from trainer.core.plan import TrainPlan
from trainer.core.ports import ObjectStore, Queue, RunTable, Worker
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import KeptPixels
from trainer.datasets.images.facts_cache import FactsCache
from trainer.datasets.prepare import CheckUp, FetchedDatasets
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import Roots, parse_reference
from trainer.jobs.sqlite import SqliteQueue
from trainer.jobs.sqlite_schema import SCHEMA_VERSION
from trainer.remote.web import GuardedClient
from trainer.reporting.log import LogReporter
from trainer.reporting.reporters import Reporters
from trainer.request.parse import plan_of
from trainer.settings import Settings, process_environment, service_manager
from trainer.storage.local import LocalObjectStore
from trainer.storage.router import StoreRouter
from trainer.systemd import ServiceManager
from trainer.training.exports import available_exports
from trainer.training.supervisor.process import ChildTrainer
from trainer.training.supervisor.training_watch import TimeLimits
from trainer.weights.model_folder import ModelFolder
from trainer.worker.claiming import Claimer
from trainer.worker.daemon import Daemon
from trainer.worker.execution import Execution, RunHost
from trainer.worker.health import Health
from trainer.worker.housekeeping import DAY, LEAST, Housekeeping, old_folders, remove_unreadable
from trainer.worker.lease import LeaseTimes
from trainer.worker.liveness import Liveness
from trainer.worker.orphaned_journals import orphaned_journals
from trainer.worker.outcome_delivery import OrphanDelivery
from trainer.worker.prefetch import Prefetcher
from trainer.worker.recovery import Recovery
from trainer.worker.run_folders import RunFolders, attempts_in
from trainer.worker.run_services import RunServices, RunTimes
from trainer.worker.self_test import Place, SelfTest
from trainer.worker.slots import CPU, Slots
from trainer.worker.uploaded_checkpoints import UploadedCheckpoints

log = structlog.get_logger()

GB = 10**9
REPORTERS_CLOSE = 5.0  # seconds that a shutdown waits for the reporters
ANYWHERE = Path("/")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where runs come from and where bytes live. `local` is one SQLite file and one folder."""

    queue: Queue
    runs: RunTable
    store: ObjectStore
    check: Callable[[], Sequence[str]]  # raises what is wrong with the access, returns what is doubtful about it
    schema_version: Callable[[], int]
    tidy: Callable[[], None]  # removes what uploads that were given up left on this host
    url: str | None  # of Supabase; None: local


@contextmanager
def open_backend(settings: Settings, stop: StopSignal) -> Iterator[Backend]:
    """Connect to what the settings name. Nothing is sent yet."""
    if not settings.uses_supabase:
        queue = SqliteQueue(settings.trainer_home / "queue.db")
        store = LocalObjectStore(settings.trainer_home / "storage")
        yield Backend(
            queue=queue,
            runs=queue,
            store=StoreRouter({store.name: store}, default=store.name),
            check=lambda: (),
            schema_version=lambda: SCHEMA_VERSION,
            tidy=store.tidy,
            url=None,
        )
        return
    # imported here: who runs locally does not pay for the client library
    from trainer.jobs.supabase import SupabaseQueue
    from trainer.remote.storage_api import StorageApi
    from trainer.remote.supabase import Project
    from trainer.storage.supabase import SupabaseObjectStore

    assert settings.supabase_url is not None
    assert settings.supabase_service_role_key is not None
    url, key = settings.supabase_url, settings.supabase_service_role_key.get_secret_value()
    apikey = settings.supabase_anon_key.get_secret_value() if settings.supabase_anon_key else None
    with Project(url, key, apikey=apikey) as project, closing(StorageApi(url, key, apikey=apikey)) as api:
        # tries of one beat end before the next is due
        beat = RetryPolicy(tries=3, first_wait=0.5, longest_wait=2.0, total_seconds=0.8 * beat_seconds(settings))
        supabase = SupabaseQueue(project, beat=beat)
        objects = SupabaseObjectStore(api, notes=settings.trainer_home / "uploads", stop=stop)
        yield Backend(
            queue=supabase,
            runs=supabase,
            store=StoreRouter({objects.name: objects}, default=objects.name),
            check=supabase.check,
            schema_version=supabase.schema_version,
            tidy=objects.tidy,
            url=settings.supabase_url,
        )


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What executes runs: the same for the daemon and for a single run."""

    backend: Backend
    queue: Queue  # of the backend, with its heartbeats counted
    host: RunHost
    trainer: ChildTrainer
    datasets: FetchedDatasets
    reporters: Reporters
    health: Health
    liveness: Liveness

    @property
    def execution(self) -> Execution:
        return Execution(self.host)


@contextmanager
def build_service(settings: Settings, stop: StopSignal) -> Iterator[Daemon]:
    """Build the whole service; everything it opened is closed afterwards."""
    self_test = build_self_test(settings)
    self_test.require_folders()
    health, liveness = Health(self_test), Liveness()
    address, watchdog_seconds = service_manager()
    manager = ServiceManager(address)
    with manager.watchdog(watchdog_seconds, liveness.is_alive), open_backend(settings, stop) as backend:
        log.info(
            "service starts",
            version=__version__,
            worker_id=settings.worker_id,
            backend=backend.url or f"local, in {settings.trainer_home} (SUPABASE_URL is not set)",
        )
        with open_run_parts(settings, backend, health, liveness) as parts:
            yield build_daemon(settings, parts, manager)


@contextmanager
def open_run_parts(settings: Settings, backend: Backend, health: Health, liveness: Liveness) -> Iterator[RunParts]:
    """Open what executes runs, and close it afterwards."""
    with ExitStack() as opened:
        queue, reporters = open_reporters(settings, backend.queue, health, opened)
        trainer = build_trainer(settings)
        opened.callback(trainer.close)
        trainer.warm()
        datasets = build_datasets(settings, backend, opened)
        run_host = RunHost(
            queue=queue,
            services=build_run_services(settings, backend, health, trainer, datasets),
            reporter_for=reporters.for_run,
            lease_times=LeaseTimes(
                beat=beat_seconds(settings),
                progress=settings.progress_interval,
                lease=settings.lease_seconds,
            ),
            liveness=liveness,
            timestamp_output=settings.timestamp_streams,
        )
        yield RunParts(
            backend=backend,
            queue=queue,
            host=run_host,
            trainer=trainer,
            datasets=datasets,
            reporters=reporters,
            health=health,
            liveness=liveness,
        )


def open_reporters(settings: Settings, queue: Queue, health: Health, opened: ExitStack) -> tuple[Queue, Reporters]:
    """Start the reporters. Return them and the queue, whose heartbeats are counted if there are metrics."""
    if not settings.metrics_port:
        reporters = Reporters([LogReporter()])
    else:
        # imported here because a service without metrics does not need the library
        from trainer.reporting.prometheus import CountedQueue, MetricsReporter

        metrics = MetricsReporter(host.gpu_loads, lambda: health.problem is None)
        opened.callback(metrics.serve(settings.metrics_port))
        queue, reporters = (
            CountedQueue(queue, metrics),
            Reporters([LogReporter(), metrics], on_dropped=metrics.count_dropped),
        )
    opened.callback(reporters.close, REPORTERS_CLOSE)
    return queue, reporters


def build_run_services(
    settings: Settings, backend: Backend, health: Health, trainer: ChildTrainer, datasets: FetchedDatasets
) -> RunServices:
    """Build what all runs share."""
    folders = RunFolders(
        runs=settings.runs_folder,
        views=settings.datasets_folder / "datasets",
        journals=settings.trainer_home / "journal",
        keep_views=settings.keep_run_datasets,
    )
    bucket = settings.supabase_artifacts_bucket
    return RunServices(
        datasets=datasets,
        weights=ModelFolder(
            settings.models_folder,
            store=backend.store,
            artifacts_bucket=bucket,
            run_of=backend.runs.get,
            allow_download=settings.allow_weights_download,
        ),
        trainer=trainer,
        store=backend.store,
        artifacts_bucket=bucket,
        parse=plan_parser(settings),
        folders=folders,
        uploaded=UploadedCheckpoints(
            settings.trainer_home / "uploaded",
            store=backend.store,
            bucket=bucket,
            row_of=backend.runs.get,
            folders=folders,
            keep_seconds=settings.keep_runs_days * DAY,
        ),
        times=run_times(settings),
        health=health,
    )


def build_daemon(settings: Settings, parts: RunParts, manager: ServiceManager) -> Daemon:
    """Build the loop that claims runs."""
    queue, folders = parts.backend.queue, parts.host.services.folders
    slots, describe = Slots(slot_devices(settings)), partial(describe_worker, settings)
    orphans = partial(orphaned_journals, folders.journals, settings.worker_id, settings.lease_seconds)
    return Daemon(
        claimer=Claimer(
            queue,
            parts.health,
            describe_worker=describe,
            check=parts.backend.check,
            poll_seconds=settings.poll_interval,
            lease_seconds=settings.lease_seconds,
        ),
        execution=parts.execution,
        orphans=OrphanDelivery(queue, orphans, Recovery(parts.host)),
        slots=slots,
        health=parts.health,
        prefetcher=Prefetcher(
            queue=queue,
            datasets=parts.datasets,
            parse=plan_parser(settings),
            slots=slots,
            describe_worker=describe,
            interval=settings.poll_interval,
        ),
        housekeeping=build_housekeeping(settings, parts),
        liveness=parts.liveness,
        manager=manager,
        drain_seconds=settings.drain_seconds,
    )


def build_housekeeping(settings: Settings, parts: RunParts) -> Housekeeping:
    """Build the chores that free disk space and delete uploaded checkpoints."""
    services = parts.host.services
    return Housekeeping(
        [
            parts.trainer.tidy,
            *(old.sweep for old in old_folders(services.folders, settings.keep_runs_days)),
            services.uploaded.tidy,
            partial(remove_unreadable, services.folders.journals, settings.keep_runs_days),
            parts.datasets.tidy,
            parts.backend.tidy,
        ],
    )


def build_self_test(settings: Settings) -> SelfTest:
    """What a run needs of this host, whatever the run."""
    home, data = settings.trainer_home, settings.datasets_folder
    places = [
        *(Place(setting="TRAINER_HOME", folder=folder) for folder in (home, home / "journal", home / "children")),
        *(Place(setting="DATASET_ROOT", folder=folder) for folder in (data / ".cache", data / "datasets")),
        Place(setting="RUNS_DIR", folder=settings.runs_folder, needs=LEAST),
        Place(setting="MODELS_DIR", folder=settings.models_folder),
    ]
    return SelfTest(places, host.GpuCheck(process_environment()))


def run_times(settings: Settings) -> RunTimes:
    return RunTimes(checkpoint=settings.checkpoint_interval, drain=settings.drain_seconds)


def build_trainer(settings: Settings) -> ChildTrainer:
    """The supervisor of training processes."""
    return ChildTrainer(
        environment=process_environment(),
        home=settings.trainer_home / "children",
        weights=settings.models_folder,
        limits=TimeLimits(
            grace=settings.cancel_grace,
            shutdown=run_times(settings).save_checkpoint,
            stall=settings.stall_seconds,
        ),
        warm_start=settings.warm_start,
        fast_loader_bytes=int(settings.dataset_cache_gb * GB) if settings.fast_loader else 0,
        sandbox=settings.sandbox,
    )


def build_datasets(
    settings: Settings,
    backend: Backend,
    opened: ExitStack,
    extra: tuple[Path, ...] = (),
) -> FetchedDatasets:
    """Where datasets come from, and which of this host's folders a row may name: the settings' and `extra`."""
    root, roots = settings.datasets_folder, dataset_roots(settings, extra)
    own_hosts = [urlsplit(backend.url).netloc] if backend.url else []
    web = GuardedClient(allowed_hosts=settings.allowed_dataset_hosts, own_hosts=own_hosts)
    opened.callback(web.close)
    cache = ContentCache(root / ".cache", max_bytes=int(settings.dataset_cache_gb * GB))
    fetcher = Fetcher(
        roots=roots,
        cache=cache,
        web=web,
        store=backend.store,
        datasets_bucket=settings.supabase_datasets_bucket,
    )
    return FetchedDatasets(
        fetcher=fetcher,
        roots=roots,
        datasets_bucket=settings.supabase_datasets_bucket,
        storage_base_url=backend.url,
        facts=FactsCache(root / ".cache" / "facts"),
        pixels=KeptPixels(cache) if settings.fast_loader else None,
    )


def dataset_roots(settings: Settings, extra: tuple[Path, ...] = ()) -> Roots:
    """The folders below which a row may name files."""
    folders = (*(Path(folder) for folder in settings.extra_dataset_roots), *extra)
    # whoever can write into the local queue can read the files of this host anyway
    return Roots(
        dataset_root=settings.datasets_folder, extra=folders if settings.uses_supabase else (*folders, ANYWHERE)
    )


def check_request(settings: Settings, request: RunRequest) -> tuple[str, ...]:
    """Return the warnings about a run. Raise BadRequest, as a worker would, if no worker can train it.

    The workers of the local queue are on this host, so its exports count, and a dataset's path must exist here.
    """
    is_local = not settings.uses_supabase
    served = available_exports() if is_local else frozenset(PACKAGES)
    plan = plan_parser(settings)(request, exports_available=served)
    for source in plan.sources:
        ref = parse_reference(
            source,
            dataset_root=settings.datasets_folder,
            datasets_bucket=settings.supabase_datasets_bucket,
            storage_base_url=None if is_local else settings.supabase_url,
        )
        if is_local and isinstance(ref, DiskRef):
            with suppress(MachineFailed):  # a mount that is missing now: the run waits for it
                dataset_roots(settings).admit(ref.path)
    return plan.warnings


def plan_parser(settings: Settings) -> partial[TrainPlan]:
    """How a row's request is read on this host."""
    return partial(
        plan_of,
        exports_available=available_exports(),
        artifacts_bucket=settings.supabase_artifacts_bucket,
        workers=host.loaders_per_slot(len(slot_devices(settings))),
    )


def beat_seconds(settings: Settings) -> float:
    """One call per beat renews the lease, asks for a cancel and reports the worker, so the shorter interval counts."""
    return min(settings.cancel_check_interval, settings.heartbeat_interval)


def slot_devices(settings: Settings) -> list[int]:
    """One entry per slot: the GPUs in turn, or CPU slots on a host without."""
    found = [gpu.index for gpu in host.visible_gpus(process_environment().get("CUDA_VISIBLE_DEVICES"))]
    count = settings.slots or max(len(found), 1)
    return [found[slot % len(found)] if found else CPU for slot in range(count)]


def describe_worker(settings: Settings, free_gpus: int) -> Worker:
    """Who we are, and what a run may require of us now."""
    found = host.visible_gpus(process_environment().get("CUDA_VISIBLE_DEVICES"))
    smallest = min((gpu.memory for gpu in found), default=0) / host.GIB
    return Worker(
        id=settings.worker_id,
        capabilities={"gpus": free_gpus, "gpu_memory_gb": round(smallest, 1)},
        hardware={**host.hardware(), "version": __version__, "slots": len(slot_devices(settings))},
    )


def check_dataset(settings: Settings, reference: str, task: Task | None, sheet: Path | None) -> CheckUp:
    """Look at a dataset for a person. Whoever types the command may look at any file that they can read."""
    order = DatasetOrder(run_id="check", sources=(reference,), task=task)
    stop = StopSignal()
    with ExitStack() as opened, tempfile.TemporaryDirectory() as folder:
        backend = opened.enter_context(open_backend(settings, stop))
        datasets = build_datasets(settings, backend, opened, extra=(ANYWHERE,))
        return datasets.check(order, Path(folder) / "staging", stop, lambda _: None, sheet)


def weights_on_disk(settings: Settings) -> list[str]:
    """The files below MODELS_DIR that a run may name."""
    folder = ModelFolder(
        settings.models_folder,
        store=None,
        artifacts_bucket="",
        run_of=lambda _: None,
        allow_download=False,
    )
    return folder.on_disk()


def run_logs(settings: Settings, run_id: str) -> list[Path]:
    """The logs of a run's attempts on this host, oldest first. Links are not followed."""
    logs = [folder.log for folder in attempts_in(settings.runs_folder, run_id)]
    return [path for path in logs if path.is_file() and not path.is_symlink()]
