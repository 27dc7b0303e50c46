"""The resources of this host for runs: slots, folders and training processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from trainer import __version__, host
from trainer.core.plan import TrainPlan
from trainer.core.ports import Worker
from trainer.request.parse import plan_of
from trainer.sandbox.support import sandbox_problem
from trainer.settings import Settings, process_environment
from trainer.training.exports import available_exports
from trainer.training.supervisor.process import ChildTrainer
from trainer.training.supervisor.training_watch import TimeLimits
from trainer.worker.housekeeping import LEAST
from trainer.worker.run_folders import attempts_in
from trainer.worker.run_services import RunTimes
from trainer.worker.self_test import Place, SelfTest
from trainer.worker.slots import CPU

GB = 10**9


def build_self_test(settings: Settings) -> SelfTest:
    """Return the self-test of the resources that every run needs."""
    home, data = settings.trainer_home, settings.datasets_folder
    places = [
        *(Place(setting="TRAINER_HOME", folder=folder) for folder in (home, home / "journal", home / "children")),
        *(Place(setting="DATASET_ROOT", folder=folder) for folder in (data / ".cache", data / "datasets")),
        Place(setting="RUNS_DIR", folder=settings.runs_folder, needs=LEAST),
        Place(setting="MODELS_DIR", folder=settings.models_folder),
    ]
    gpus = host.GpuCheck(process_environment())
    return SelfTest(places, lambda: sandbox_problem(settings.sandbox) or gpus())


def run_times(settings: Settings) -> RunTimes:
    return RunTimes(checkpoint=settings.checkpoint_interval, drain=settings.drain_seconds)


def build_trainer(settings: Settings) -> ChildTrainer:
    """Return the supervisor of training processes."""
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
        private_network=len(host.gpus()) > 1,  # a prestarted process can get a training on several GPUs
    )


def plan_parser(settings: Settings) -> partial[TrainPlan]:
    """Return the function that parses the request of a row for this host."""
    return partial(
        plan_of,
        exports_available=available_exports(),
        artifacts_bucket=settings.supabase_artifacts_bucket,
        workers=host.loaders_per_slot(len(slot_devices(settings))),
    )


def slot_devices(settings: Settings) -> list[int]:
    """Return one entry per slot: the GPUs in round-robin order, or CPU slots on a host without GPUs."""
    found = [gpu.index for gpu in host.visible_gpus(process_environment().get("CUDA_VISIBLE_DEVICES"))]
    count = settings.slots or max(len(found), 1)
    return [found[slot % len(found)] if found else CPU for slot in range(count)]


def describe_worker(settings: Settings, free_gpus: int) -> Worker:
    """Return the description of this worker with its current capabilities."""
    found = host.visible_gpus(process_environment().get("CUDA_VISIBLE_DEVICES"))
    smallest = min((gpu.memory for gpu in found), default=0) / host.GIB
    return Worker(
        id=settings.worker_id,
        capabilities={"gpus": free_gpus, "gpu_memory_gb": round(smallest, 1)},
        hardware={**host.hardware(), "version": __version__, "slots": len(slot_devices(settings))},
    )


def run_logs(settings: Settings, run_id: str) -> list[Path]:
    """Return the logs of a run's attempts on this host, oldest first. Links are not followed."""
    logs = [folder.log for folder in attempts_in(settings.runs_folder, run_id)]
    return [path for path in logs if path.is_file() and not path.is_symlink()]
