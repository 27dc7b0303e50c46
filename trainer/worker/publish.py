"""What is kept of a run, and under which keys.

Everything goes below the attempt's own prefix, `training_runs/<run_id>/<attempt>/`, where no other attempt writes;
nothing reads it until the row, changed under the claim, points there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, MachineFailed, Misconfigured, Unavailable
from trainer.core.events import Event, Finished, Phase, TransferProgress, Warned, WeightsFile
from trainer.core.job import Job, JsonObject
from trainer.core.names import storage_key
from trainer.core.ports import ObjectStore
from trainer.core.results import Artifact
from trainer.core.stop import StopSignal
from trainer.disk.removal import remove_tree

NOT_FOLDERS = {"checkpoints", "journal"}
NOT_FILES = {"run.log", "manifest.json"}
DEEPEST = 16  # folders below each other
PARALLEL = 4  # small files at once; a large one has its own connection anyway
LARGEST_LOG = 256 * 2**20  # bytes of a log that are published; of a larger one its end
LARGEST = 16 * 2**30  # bytes of a file that is published; a hole of a terabyte would take hours
LEFT_OUT_AFTER = 600.0  # seconds for which a file beside a finished model may be refused, before the model goes without it
LONGEST_KEY = 900  # bytes of a key below the attempt's prefix; S3 takes 1024 in all, a file system 255 between two slashes
_CHUNK = 2**20  # bytes
Content: TypeAlias = tuple[int, int, int]  # size, time of the last change and inode: equal while nobody wrote the file


class WeightsChanged(MachineFailed):
    """The weights in the run folder are not the ones that the training finished with."""


def prefix_of(job: Job) -> str:
    return f"training_runs/{job.id}/{job.attempt}"


class Publisher:
    """Uploads the run folder of one attempt. A file that has arrived is not sent again when another one fails."""

    def __init__(self, store: ObjectStore, bucket: str, job: Job) -> None:
        self._store = store
        self._bucket = bucket
        self._job = job
        self._sent: dict[str, tuple[Content, Artifact]] = {}
        self._refused: dict[str, float] = {}  # since when, monotonic
        self._left_out: dict[str, str] = {}  # and why

    @property
    def sent(self) -> list[Artifact]:
        """What has arrived so far."""
        return sorted((artifact for _, artifact in self._sent.values()), key=lambda artifact: artifact.name)

    def publish(
        self,
        run_dir: Path,
        log: Path,
        stop: StopSignal,
        on_event: Callable[[Event], None],
        finished: Finished | None = None,
    ) -> list[Artifact]:
        """Upload everything worth keeping, then the manifest, and check that all of it is in the bucket.

        May be repeated, and then sends what is missing. `log` is still being written and goes last. What cannot be
        published beside the weights is left out, with a warning. Raises
        `WeightsChanged` unless the weights are those that `finished` names, any other TrainerError, OSError, Stopped.
        """
        named, files = _named(finished, run_dir), _by_name(run_dir)
        self._left_out = {name: reason for name, path in files.items() if (reason := _unfit(name, path))}
        files = {name: path for name, path in files.items() if name not in self._left_out}
        if gone := named.keys() - files.keys():
            raise WeightsChanged(f"{', '.join(sorted(gone))} is gone from {run_dir}.")
        meter = _Meter(len(files), sum(path.stat().st_size for path in files.values()), on_event)
        send = partial(self._send_or_leave_out, named, stop, meter)
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="upload") as pool:
            artifacts = sorted(chain(*pool.map(send, files, files.values())), key=lambda artifact: artifact.name)
        if log.is_file() and not log.is_symlink():
            artifacts += send(log.name, _snapshot(log))
        artifacts += send("manifest.json", self._manifest(run_dir, artifacts))
        self._require_stored(artifacts, stop)
        for name, reason in self._left_out.items():
            message = f"{name} is not published and stays on this host: {reason}"
            on_event(Warned(code="artifact_left_out", message=message))
        return artifacts

    def _send_or_leave_out(
        self, named: Mapping[str, WeightsFile], stop: StopSignal, meter: _Meter, name: str, path: Path,
    ) -> list[Artifact]:
        """The artifact, or none: a finished model does not wait for ever for a file beside it that the store refuses.

        While the store refuses everything the model waits, because then its weights fail, or the listing at the end.
        """
        try:
            artifact = self._send(named, stop, meter, name, path)
        except (BadRequest, Misconfigured) as error:
            since = self._refused.setdefault(name, time.monotonic())
            if not named or name in named or time.monotonic() - since < LEFT_OUT_AFTER:
                raise
            self._left_out[name] = str(error)
            return []
        self._refused.pop(name, None)
        return [artifact]

    def _send(
        self, named: Mapping[str, WeightsFile], stop: StopSignal, meter: _Meter, name: str, path: Path,
    ) -> Artifact:
        stop.raise_if_set()
        content = _content(path)
        before, artifact = self._sent.get(name, (None, None))
        if artifact is None or before != content:
            artifact = self._upload(path, name, content, named.get(name), stop, meter)
            if _content(path) != content:
                raise MachineFailed(f"{path} changed while it was uploaded.")
            self._sent[name] = content, artifact
        meter.finished_file()
        return artifact

    def _upload(
        self, path: Path, name: str, content: Content, named: WeightsFile | None, stop: StopSignal, meter: _Meter,
    ) -> Artifact:
        size, digest = content[0], _sha256(path, stop)
        if named is not None and (size, digest) != (named.bytes, named.sha256):
            raise WeightsChanged(f"{path} is not the file that the training finished with.")
        ref = ObjectRef(bucket=self._bucket, key=f"{prefix_of(self._job)}/{storage_key(name)}")
        stored = self._store.upload(path, ref, stop, on_bytes=meter.moved)
        return Artifact(name=name, path=stored.ref.key, url=stored.url, bytes=size, sha256=digest)

    def _manifest(self, run_dir: Path, artifacts: Sequence[Artifact]) -> Path:
        manifest: JsonObject = {
            "run_id": self._job.id,
            "attempt": self._job.attempt,
            "artifacts": [{k: v for k, v in asdict(a).items() if k != "url"} for a in artifacts],
        }
        path = run_dir / "manifest.json"
        _clear(path)
        path.write_text(json.dumps(manifest, indent=2) + "\n")
        return path

    def _require_stored(self, artifacts: Sequence[Artifact], stop: StopSignal) -> None:
        """Raise Unavailable when the bucket lost what it took, because it was made anew, for example."""
        listing = self._store.list(self._bucket, prefix_of(self._job), stop)
        there = {info.ref.key: info.bytes for info in listing}
        lost = [artifact.name for artifact in artifacts if there.get(artifact.path) != artifact.bytes]
        for name in lost:
            del self._sent[name]
        if lost:
            raise Unavailable(f"bucket {self._bucket!r} does not have {', '.join(lost[:5])}, although it took them")


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


def _by_name(run_dir: Path) -> dict[str, Path]:
    """The kept files by the names under which they are published, weights first: the time may end before the others.

    No file beside the weights takes their name, or is in a folder of that name, which not every store can hold.
    """
    files: dict[str, Path] = {}
    for path in sorted(kept_files(run_dir), key=lambda path: path.parent != run_dir / "weights"):
        files.setdefault(artifact_name(path, run_dir), path)
    return {n: path for n, path in files.items() if not any(str(folder) in files for folder in PurePosixPath(n).parents)}


def _unfit(name: str, path: Path) -> str | None:
    """Why no store would take the file, or None."""
    key = storage_key(name)
    if len(key) > LONGEST_KEY or max(map(len, key.split("/"))) > 255:
        return "its name is too long"
    size = path.stat().st_size
    return f"{size / 2**30:.0f} GiB are too large" if size > LARGEST else None


def artifact_name(path: Path, run_dir: Path) -> str:
    """`weights/best.pt` is published as `best.pt`, as it always was; other files keep their place."""
    relative = path.relative_to(run_dir)
    parts = relative.parts[1:] if relative.parts[0] == "weights" else relative.parts
    return "/".join(parts)


def _named(finished: Finished | None, run_dir: Path) -> dict[str, WeightsFile]:
    """The weights of a finished training by the names under which they are published."""
    weights = (finished.best, finished.last) if finished else ()
    return {artifact_name(Path(file.path), run_dir): file for file in weights}


def _snapshot(log: Path) -> Path:
    """The log as it is now; the original grows while it is uploaded."""
    copy = log.with_name(f".{log.name}.uploading")
    _clear(copy)
    with log.open("rb") as source, copy.open("xb") as target:
        source.seek(max(0, source.seek(0, os.SEEK_END) - LARGEST_LOG))
        left = LARGEST_LOG
        while left and (chunk := source.read(min(left, _CHUNK))):
            left -= target.write(chunk)
    return copy


def _clear(path: Path) -> None:
    """Remove what the training process may have put in place of a file of ours: a link, a pipe, a folder."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _content(path: Path) -> Content:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _sha256(path: Path, stop: StopSignal) -> str:
    """The checksum of a file that a training process made: a hole of some terabytes would take hours. Raises Stopped."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            stop.raise_if_set()
            digest.update(chunk)
    return digest.hexdigest()


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
