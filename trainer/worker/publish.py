"""What is kept of a run, and under which keys.

Everything goes below the attempt's own prefix, `training_runs/<run_id>/<attempt>/`, where no other attempt writes;
nothing reads it until the row, changed under the claim, points there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from trainer.core.dataset import ObjectRef
from trainer.core.errors import MachineFailed
from trainer.core.events import Event, Phase, TransferProgress
from trainer.core.job import Job, JsonObject
from trainer.core.names import storage_key
from trainer.core.ports import ObjectStore
from trainer.core.results import Artifact
from trainer.core.stop import StopSignal

NOT_FOLDERS = {"checkpoints", "journal"}
NOT_FILES = {"run.log", "manifest.json"}
DEEPEST = 16  # folders below each other
PARALLEL = 4  # small files at once; a large one has its own connection anyway


def prefix_of(job: Job) -> str:
    return f"training_runs/{job.id}/{job.attempt}"


class Publisher:
    """Uploads a run directory."""

    def __init__(self, store: ObjectStore, bucket: str) -> None:
        self._store = store
        self._bucket = bucket

    def publish(
        self,
        job: Job,
        run_dir: Path,
        log: Path,
        stop: StopSignal,
        on_event: Callable[[Event], None],
    ) -> list[Artifact]:
        """Upload everything worth keeping, then the manifest. Raises Unavailable, Misconfigured, Stopped.

        May be repeated: files are replaced by equal ones. `log` is still being written and goes last.
        """
        files = list(kept_files(run_dir))
        total = sum(path.stat().st_size for path in files)
        meter = _Meter(len(files), total, on_event)
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="upload") as pool:
            sent = pool.map(lambda path: self._send(job, run_dir, path, stop, meter), files)
            artifacts = sorted(sent, key=lambda artifact: artifact.name)
        if log.exists():
            artifacts.append(self._send(job, run_dir, _snapshot(log), stop, meter, name=log.name))
        return [*artifacts, self._send_manifest(job, run_dir, artifacts, stop, meter)]

    def _send(
        self,
        job: Job,
        run_dir: Path,
        path: Path,
        stop: StopSignal,
        meter: _Meter,
        *,
        name: str | None = None,
    ) -> Artifact:
        stop.raise_if_set()
        name = name or artifact_name(path, run_dir)
        size, digest = path.stat().st_size, _sha256(path)
        ref = ObjectRef(bucket=self._bucket, key=f"{prefix_of(job)}/{storage_key(name)}")
        stored = self._store.upload(path, ref, stop, on_bytes=meter.moved)
        if stored.bytes != size:
            raise MachineFailed(f"{path} changed while it was uploaded ({size} bytes, then {stored.bytes}).")
        meter.finished_file()
        return Artifact(name=name, path=stored.ref.key, url=stored.url, bytes=size, sha256=digest)

    def _send_manifest(
        self,
        job: Job,
        run_dir: Path,
        artifacts: list[Artifact],
        stop: StopSignal,
        meter: _Meter,
    ) -> Artifact:
        manifest: JsonObject = {
            "run_id": job.id,
            "attempt": job.attempt,
            "artifacts": [{k: v for k, v in asdict(a).items() if k != "url"} for a in artifacts],
        }
        path = run_dir / "manifest.json"
        path.write_text(json.dumps(manifest, indent=2) + "\n")
        return self._send(job, run_dir, path, stop, meter)


def kept_files(run_dir: Path) -> list[Path]:
    """The files of a run directory that are published, apart from its log and manifest.

    Hidden ones are not, nor what lies deeper than `DEEPEST` folders or cannot be read: the training process made them.
    """
    files: list[Path] = []
    folders = [(run_dir, 0)]
    while folders:
        folder, depth = folders.pop()
        with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
            for entry in entries:
                ours = entry.name in NOT_FILES or (depth == 0 and entry.name in NOT_FOLDERS)
                if entry.name.startswith(".") or ours:
                    continue
                path = folder / entry.name
                if entry.is_dir(follow_symlinks=False) and depth < DEEPEST:
                    folders.append((path, depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    files.append(path)
    return sorted(files)


def artifact_name(path: Path, run_dir: Path) -> str:
    """`weights/best.pt` is published as `best.pt`, as it always was; other files keep their place."""
    relative = path.relative_to(run_dir)
    parts = relative.parts[1:] if relative.parts[0] == "weights" else relative.parts
    return "/".join(parts)


def _snapshot(log: Path) -> Path:
    """The log as it is now; the original grows while it is uploaded."""
    copy = log.with_name(f".{log.name}.uploading")
    copy.write_bytes(log.read_bytes())
    return copy


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Meter:
    """Counts what was uploaded, and tells at most twice a second."""

    def __init__(self, files: int, total: int, on_event: Callable[[Event], None]) -> None:
        self._files, self._total, self._on_event = files, total, on_event
        self._done_files = 0
        self._bytes = 0

    def moved(self, count: int) -> None:
        self._bytes += count

    def finished_file(self) -> None:
        self._done_files += 1
        self._on_event(
            TransferProgress(
                phase=Phase.UPLOADING,
                files=self._done_files,
                total_files=max(self._files, self._done_files),
                bytes=self._bytes,
                total_bytes=max(self._total, self._bytes),
                rate=0.0,
                eta_seconds=None,
            ),
        )
