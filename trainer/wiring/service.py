"""Builds the service: the objects that execute runs (`RunParts`), and the daemon that claims runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from trainer import __version__, host
from trainer.core.job import Beat
from trainer.core.stop import StopSignal
from trainer.datasets.prepare import FetchedDatasets
from trainer.reporting.log import LogReporter
from trainer.reporting.reporters import Reporters
from trainer.settings import Settings, service_manager
from trainer.systemd import ServiceManager
from trainer.training.supervisor.process import ChildTrainer
from trainer.weights.model_folder import ModelFolder
from trainer.wiring.backend import Backend, beat_seconds, open_backend
from trainer.wiring.datasets import build_datasets
from trainer.wiring.host import build_self_test, build_trainer, describe_worker, plan_parser, run_times, slot_devices
from trainer.worker.claiming import Claimer
from trainer.worker.daemon import Daemon
from trainer.worker.execution import Execution, RunHost
from trainer.worker.health import Health
from trainer.worker.housekeeping import DAY, Housekeeping, old_folders, remove_unreadable
from trainer.worker.lease import LeaseTimes
from trainer.worker.liveness import Liveness
from trainer.worker.orphaned_journals import orphaned_journals
from trainer.worker.prefetch import Prefetcher
from trainer.worker.recovery import OrphanDelivery, Recovery
from trainer.worker.run_folders import RunFolders
from trainer.worker.run_services import RunServices
from trainer.worker.slots import Slots
from trainer.worker.uploaded_checkpoints import UploadedCheckpoints

log = structlog.get_logger()

REPORTERS_CLOSE = 5.0  # seconds that a shutdown waits for the reporters


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """The objects that execute runs. The daemon uses them, and a program can use them for a single run."""

    backend: Backend
    host: RunHost
    trainer: ChildTrainer
    datasets: FetchedDatasets


@contextmanager
def build_service(settings: Settings, stop: StopSignal) -> Iterator[Daemon]:
    """Build the whole service, and close all of its resources after the block."""
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
    """Build the objects that execute runs, and close them after the block."""
    with ExitStack() as opened:
        beat, reporters = open_reporters(settings, backend.queue.beat, health, opened)
        trainer = build_trainer(settings)
        opened.callback(trainer.close)
        trainer.warm()
        datasets = build_datasets(settings, backend, opened)
        run_host = RunHost(
            queue=backend.queue,
            beat=beat,
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
        yield RunParts(backend=backend, host=run_host, trainer=trainer, datasets=datasets)


def open_reporters(settings: Settings, beat: Beat, health: Health, opened: ExitStack) -> tuple[Beat, Reporters]:
    """Start the reporters. Return `beat`, which counts heartbeats if metrics are enabled, and the reporters."""
    if not settings.metrics_port:
        reporters = Reporters([LogReporter()])
    else:
        # imported here because a service without metrics does not need the library
        from trainer.reporting.prometheus import MetricsReporter

        metrics = MetricsReporter(host.gpu_loads, lambda: health.problem is None)
        opened.callback(metrics.serve(settings.metrics_port))
        beat = metrics.counted(beat)
        reporters = Reporters([LogReporter(), metrics], on_dropped=metrics.count_dropped)
    opened.callback(reporters.close, REPORTERS_CLOSE)
    return beat, reporters


def build_run_services(
    settings: Settings, backend: Backend, health: Health, trainer: ChildTrainer, datasets: FetchedDatasets
) -> RunServices:
    """Return the services that all runs share."""
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
            # users who can write to the local queue can already read the files of this host
            fine_tune_from=settings.fine_tune_from if settings.uses_supabase else "any",
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
    """Return the daemon, which claims runs in a loop."""
    queue, services = parts.backend.queue, parts.host.services
    slots, describe = Slots(slot_devices(settings)), partial(describe_worker, settings)
    orphans = partial(orphaned_journals, services.folders.journals, settings.worker_id, settings.lease_seconds)
    return Daemon(
        claimer=Claimer(
            queue,
            services.health,
            describe_worker=describe,
            check=parts.backend.check,
            poll_seconds=settings.poll_interval,
            lease_seconds=settings.lease_seconds,
        ),
        execution=Execution(parts.host),
        orphans=OrphanDelivery(queue, orphans, Recovery(parts.host)),
        slots=slots,
        health=services.health,
        prefetcher=Prefetcher(
            queue=queue,
            datasets=parts.datasets,
            parse=plan_parser(settings),
            slots=slots,
            describe_worker=describe,
            interval=settings.poll_interval,
        ),
        housekeeping=build_housekeeping(settings, parts),
        liveness=parts.host.liveness,
        manager=manager,
        drain_seconds=settings.drain_seconds,
    )


def build_housekeeping(settings: Settings, parts: RunParts) -> Housekeeping:
    """Return the regular tasks that free disk space and delete uploaded checkpoints."""
    services = parts.host.services
    return Housekeeping(
        [
            parts.trainer.tidy,
            *(old.sweep for old in old_folders(services.folders, settings.keep_runs_days)),
            services.uploaded.tidy,
            partial(remove_unreadable, services.folders.journals, settings.keep_runs_days),
            parts.datasets.fetcher.cache.tidy,
            parts.backend.tidy,
        ],
    )
