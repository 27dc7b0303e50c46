"""The command `doctor`: check the installation, and suggest a fix for each problem."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer import host
from trainer.core.dataset import ObjectRef
from trainer.core.errors import Misconfigured, ObjectMissing, TrainerError, Unavailable
from trainer.core.job import JsonObject
from trainer.core.ports import ObjectStore, RunTable
from trainer.core.stop import StopSignal
from trainer.remote.clock import clock_skew
from trainer.remote.supabase_access import role_of, worker_of
from trainer.sandbox import private_network
from trainer.sandbox.support import SIGNALS, kernel_support, sandbox_problem
from trainer.settings import Settings, misspelled_settings, read_settings
from trainer.terminal import is_long_ago
from trainer.wiring.backend import Backend, open_backend
from trainer.worker.self_test import disk_problem, write_and_read

GIB = 2**30
LEAST_FREE = 5 * GIB  # bytes
LEAST_SHARED_MEMORY = GIB  # bytes; dataloader workers pass batches through /dev/shm
MOST_SKEW = 60.0  # seconds between the clocks of this host and the server; a larger skew breaks signed URLs and tokens
TORCH_SECONDS = 120.0  # time limit, because a driver can hang

# runs in a separate process, because the service never imports torch
LOOK_AT_TORCH = """
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [
    {"name": torch.cuda.get_device_name(i), "memory": torch.cuda.get_device_properties(i).total_memory}
    for i in range(torch.cuda.device_count())]}))
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report. A warning does not change the exit code."""

    name: str
    state: Literal["ok", "warning", "fault"]
    message: str


def examine() -> Iterator[Check]:
    """Yield the results of all checks. If the settings are not valid, yield only their errors."""
    try:
        settings = read_settings()
    except Misconfigured as error:
        for line in str(error).splitlines():
            yield Check(name="settings", state="fault", message=line)
        return
    yield Check(name="settings", state="ok", message=f"backend {'supabase' if settings.uses_supabase else 'local'}")
    for name, nearest in misspelled_settings().items():
        yield Check(name="settings", state="warning", message=f"{name} is not a setting; did you mean {nearest}?")
    yield from _folders(settings)
    yield from _permissions(settings)
    yield from _shared_memory(Path("/dev/shm"))  # noqa: S108
    yield from _sandbox(settings.sandbox)
    yield from _gpus()
    yield from _until_fault("queue", _backend(settings))


def _until_fault(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield the checks. After an expected error, yield a fault as the last check."""
    try:
        yield from checks
    except (TrainerError, OSError) as error:
        yield Check(name=name, state="fault", message=str(error))


def _backend(settings: Settings) -> Iterator[Check]:
    with open_backend(settings, StopSignal()) as backend:
        yield from _queue(settings, backend)
        yield from _worker(settings, backend.runs)
        if backend.url:
            yield from _until_fault("clock", _clock(backend.url))
        for bucket in (settings.supabase_datasets_bucket, *settings.allowed_buckets):
            yield _readable_bucket(bucket, backend.store, local=not settings.uses_supabase)
        bucket = settings.supabase_artifacts_bucket
        yield from _until_fault(f"bucket {bucket}", _writable_bucket(bucket, settings.worker_id, backend.store))


def _folders(settings: Settings) -> Iterator[Check]:
    places = {
        "TRAINER_HOME": settings.trainer_home,
        "DATASET_ROOT": settings.datasets_folder,
        "RUNS_DIR": settings.runs_folder,
        "MODELS_DIR": settings.models_folder,
    }
    for name, folder in places.items():
        yield _writable(name, folder)
    for extra in settings.extra_dataset_roots:
        if not os.access(extra, os.R_OK | os.X_OK):
            message = f"{extra} does not exist, or this user cannot read it; create it or change its permissions"
            yield Check(name="EXTRA_DATASET_ROOTS", state="fault", message=message)
    weights = sorted(path.name for path in settings.models_folder.glob("*.pt"))
    yield Check(
        name="weights", state="ok", message=", ".join(weights) or "no weights yet; they are downloaded when needed"
    )


def _writable(name: str, folder: Path) -> Check:
    try:
        write_and_read(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(name=name, state="fault", message=disk_problem(name, folder, error))
    if free < LEAST_FREE:
        message = (
            f"{folder} has only {free / GIB:.1f} GiB free; free some space, or set {name} to a folder on another disk"
        )
        return Check(name=name, state="fault", message=message)
    return Check(name=name, state="ok", message=f"{folder}, {free / GIB:.0f} GiB free")


def _permissions(settings: Settings) -> Iterator[Check]:
    """Warn about files whose permissions let other users of this host read the keys or replace the models."""
    environment = Path(str(settings.model_config.get("env_file")))
    if _mode(environment) & stat.S_IROTH:
        message = f"other users of this host can read {environment.absolute()}, which may contain keys: chmod 600 {environment}"
        yield Check(name="permissions", state="warning", message=message)
    for folder in (settings.trainer_home, settings.datasets_folder, settings.runs_folder, settings.models_folder):
        if _mode(folder) & stat.S_IWOTH:
            message = f"other users of this host can write to {folder}: chmod o-w {folder}"
            yield Check(name="permissions", state="warning", message=message)


def _mode(path: Path) -> int:
    """Return the permissions of a file or folder, or 0 if it does not exist or is a device."""
    try:
        found = path.stat().st_mode
    except OSError:
        return 0
    return stat.S_IMODE(found) if stat.S_ISREG(found) or stat.S_ISDIR(found) else 0


def _shared_memory(folder: Path) -> Iterator[Check]:
    size = shutil.disk_usage(folder).total if folder.exists() else 0
    if size < LEAST_SHARED_MEMORY:
        message = f"{folder} has {size / GIB:.2f} GiB: give the container --shm-size=8g, or set workers: 0 in the runs"
        yield Check(name="shared memory", state="warning", message=message)
    else:
        yield Check(name="shared memory", state="ok", message=f"{size / GIB:.1f} GiB")


def _sandbox(setting: str) -> Iterator[Check]:
    """Check what this kernel offers for the sandbox of training processes, and what the setting SANDBOX does with it."""
    support = kernel_support()
    if problem := sandbox_problem(setting):
        yield Check(name="sandbox", state="fault", message=problem)
    elif setting == "0":
        message = "SANDBOX=0: a training process can read and change all files of this user; remove this setting"
        yield Check(name="sandbox", state="warning", message=message)
    elif support.missing:
        message = (
            f"this kernel has no {' and no '.join(support.missing)}: runs continue without it; use Linux 6.12 or newer"
        )
        yield Check(name="sandbox", state="warning", message=message)
    elif support.landlock < SIGNALS:
        message = (
            f"Landlock {support.landlock} does not restrict signals, so a training process can kill other processes of this "
            "user; use Linux 6.12 or newer"
        )
        yield Check(name="sandbox", state="warning", message=message)
    else:
        yield Check(name="sandbox", state="ok", message=f"Landlock {support.landlock}, seccomp, SANDBOX={setting}")
    if setting != "0" and len(host.gpus()) > 1:
        yield from _network_of_ranks(setting)


def _network_of_ranks(setting: str) -> Iterator[Check]:
    try:
        if private_network.is_available():
            return
        effect = "fail" if setting == "required" else "can use the network of this host"
        message = (
            f"user namespaces are forbidden, so runs on several GPUs {effect}; allow user namespaces for this user"
        )
        yield Check(name="sandbox", state="warning", message=message)
    except OSError as error:
        message = f"no run can start on this host with several GPUs: {error}"
        yield Check(name="sandbox", state="fault", message=message)


def _gpus() -> Iterator[Check]:
    facts: JsonObject = {}
    try:
        facts = torch_facts()
        yield Check(name="torch", state="ok", message=f"{facts['torch']}, CUDA {facts['cuda'] or 'none'}")
    except (TrainerError, OSError) as error:
        yield Check(name="torch", state="fault", message=str(error))
    usable, shown = facts.get("gpus", []), host.gpus()
    for gpu in usable:
        yield Check(name="gpu", state="ok", message=f"{gpu['name']}, {gpu['memory'] / GIB:.0f} GiB")
    if not shown:
        yield Check(name="gpu", state="warning", message="no GPU is visible; runs train on the CPU")
    elif facts and not usable:
        message = (
            f"the driver ({shown[0].driver}) shows {shown[0].name}, but torch for CUDA {facts['cuda']} cannot use it: "
            "update the driver, or give this user access to /dev/nvidia*"
        )
        yield Check(name="gpu", state="fault", message=message)


def torch_facts() -> JsonObject:
    """Return the versions of torch and its CUDA, and the GPUs that torch can use.

    Raises Misconfigured if torch cannot be imported, Unavailable if the import hangs.
    """
    look = [sys.executable, "-c", LOOK_AT_TORCH]
    try:
        looked = subprocess.run(look, capture_output=True, text=True, check=True, timeout=TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"torch did not start within {TORCH_SECONDS:.0f} s: look for messages of the GPU driver in dmesg"
        ) from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise Misconfigured(f"torch cannot be imported ({last}): install requirements.txt again") from None
    facts: JsonObject = json.loads(looked.stdout.splitlines()[-1])
    return facts


def _queue(settings: Settings, backend: Backend) -> Iterator[Check]:
    """Check the access and the schema. Raise Unavailable if the server does not answer."""
    try:
        warnings = backend.check()
        schema = f"schema version {backend.schema_version()}"
    except Misconfigured as error:
        yield Check(name="queue", state="fault", message=str(error))
        return
    for warning in warnings:
        yield Check(name="queue", state="warning", message=warning)
    secret = settings.supabase_service_role_key
    key = secret.get_secret_value() if secret and backend.url else ""
    if (owner := worker_of(key) or settings.worker_id) != settings.worker_id:
        message = f"the key belongs to the worker {owner}: set WORKER_ID={owner}, or use another key"
        yield Check(name="queue", state="fault", message=message)
    access = f"{backend.url}, role {role_of(key) or 'unknown'}" if key else str(settings.trainer_home / "queue.db")
    yield Check(name="queue", state="ok", message=f"{access}, {schema}")


def _worker(settings: Settings, runs: RunTable) -> Iterator[Check]:
    """Check the last report of the service on this host."""
    try:
        rows = [row for row in runs.workers() if row.worker_id == settings.worker_id]
    except Misconfigured:  # a key of the restricted role cannot read this table
        return
    for row in rows:
        if is_long_ago(row.last_seen):
            continue  # the service is not running, so its last report is outdated
        problem = row.status_message
        message = (
            f"{settings.worker_id} claims no runs: {problem}" if problem else f"{settings.worker_id}, {row.status}"
        )
        yield Check(name="worker", state="fault" if problem else "ok", message=f"{message} (last seen {row.last_seen})")


def _writable_bucket(bucket: str, worker_id: str, store: ObjectStore) -> Iterator[Check]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"written by trainer_service.py doctor\n")
        file.flush()
        ref = ObjectRef(bucket=bucket, key=f"doctor/{store.key(worker_id)}.txt")
        store.upload(Path(file.name), ref, StopSignal())
        store.delete(ref)
    yield Check(name=f"bucket {bucket}", state="ok", message="can be written")


def _readable_bucket(bucket: str, store: ObjectStore, *, local: bool) -> Check:
    name = f"bucket {bucket}"
    try:
        next(iter(store.list(ObjectRef(bucket=bucket, key=""))), None)
    except ObjectMissing as error:
        # the local store creates the folder together with the first object
        return Check(name=name, state="ok" if local else "fault", message="empty" if local else str(error))
    except (Unavailable, Misconfigured) as error:
        return Check(name=name, state="fault", message=str(error))
    return Check(name=name, state="ok", message="can be listed")


def _clock(url: str) -> Iterator[Check]:
    skew = clock_skew(url)
    if abs(skew) > MOST_SKEW:
        side = "ahead of" if skew > 0 else "behind"
        message = f"this host is {abs(skew):.0f} s {side} the server: enable NTP (timedatectl set-ntp true)"
        yield Check(name="clock", state="fault", message=message)
    else:
        yield Check(name="clock", state="ok", message=f"within {max(abs(skew), 1):.0f} s of the server clock")
