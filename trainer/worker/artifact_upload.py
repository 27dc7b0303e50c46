"""Upload of the artifacts of an attempt: the published files and their keys.

Every key starts with the prefix of the attempt (core/artifact_keys.py). No other attempt writes under this prefix.
Readers use the artifacts only after the row points to them. Updates of the row require the fencing token.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from trainer.core.artifact_keys import attempt_prefix
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, MachineFailed, Misconfigured, Unavailable
from trainer.core.events import Event, Finished, Phase, Warned, WeightsFile
from trainer.core.job import Job, JsonObject
from trainer.core.ports import ObjectStore
from trainer.core.results import Artifact
from trainer.core.run_folder import CHECKPOINTS, MANIFEST, RUN_LOG, WEIGHTS, RunFolder
from trainer.core.stop import StopSignal
from trainer.core.transfer import Meter
from trainer.disk.checksum import sha256_of
from trainer.disk.removal import remove_tree

NOT_PUBLISHED_FOLDERS = {CHECKPOINTS, "journal"}
WRITTEN_HERE = {RUN_LOG, MANIFEST}  # uploaded last
DEEPEST = 16  # levels of folders
PARALLEL = 4  # number of parallel uploads
LARGEST_LOG = 256 * 2**20  # bytes; only the end of a larger log is published
LARGEST_FILE = 16 * 2**30  # bytes; the upload of a sparse file of a terabyte would take hours
LONGEST_KEY = 900  # bytes after the attempt's prefix; S3 allows 1024 bytes in total
LONGEST_SEGMENT = 255  # bytes between two slashes; the limit of a file system
LEFT_OUT_AFTER = 600.0  # seconds from the first rejection of a file until a finished run is published without the file
_CHUNK = 2**20  # bytes
FileState: TypeAlias = tuple[int, int, int]  # size, time of the last change, inode; a write changes the state


class WeightsChanged(MachineFailed):
    """The weights in the run folder are missing, or differ from the weights of the finished training."""


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """The data of one `upload` call: the weights with their checksums, the stop signal, the progress meter."""

    weights: Mapping[str, WeightsFile]
    stop: StopSignal
    meter: Meter


class ArtifactUpload:
    """Uploads the run folder of one attempt. After an error, files that are already uploaded are not sent again."""

    def __init__(self, store: ObjectStore, bucket: str, job: Job) -> None:
        self._store = store
        self._bucket = bucket
        self._job = job
        self._prefix = attempt_prefix(job.id, job.attempt)
        self._sent: dict[str, tuple[FileState, Artifact]] = {}
        self._refused: dict[str, float] = {}  # file → time of its first rejection (monotonic)
        self._left_out: dict[str, str] = {}  # file → reason

    @property
    def sent(self) -> list[Artifact]:
        """The artifacts uploaded so far, sorted by name."""
        return sorted((artifact for _, artifact in self._sent.values()), key=lambda artifact: artifact.name)

    def upload(
        self,
        folder: RunFolder,
        log: Path,
        stop: StopSignal,
        on_event: Callable[[Event], None],
        finished: Finished | None = None,
    ) -> list[Artifact]:
        """Upload the files, the log and the manifest, and check that the bucket has all of them.

        A repeated call sends only the missing and the changed files. `log` is uploaded after the other files, because
        it is still being written. A file that is not part of the weights and cannot be published is left out with a
        warning.
        Raises `WeightsChanged` if the weights do not match `finished`. Also raises TrainerError, OSError and Stopped.
        """
        files = _files_by_name(folder)
        self._left_out = {name: reason for name, path in files.items() if (reason := _unfit(name, path, self._store))}
        files = {name: path for name, path in files.items() if name not in self._left_out}
        weights = _named_weights(finished, folder)
        if gone := weights.keys() - files.keys():
            raise WeightsChanged(f"{folder.path} does not contain {', '.join(sorted(gone))}.")
        total = sum(path.stat().st_size for path in files.values())
        meter = Meter(on_event, total_files=len(files), total_bytes=total, phase=Phase.UPLOADING)
        upload = _Upload(weights=weights, stop=stop, meter=meter)

        def send(name: str, path: Path) -> list[Artifact]:
            return self._send_or_leave_out(name, path, upload)

        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="upload") as pool:
            artifacts = sorted(chain(*pool.map(send, files, files.values())), key=lambda artifact: artifact.name)
        if log.is_file() and not log.is_symlink():
            snapshot = _snapshot(log)
            meter.expect(snapshot.stat().st_size, files=1)
            artifacts += send(log.name, snapshot)
        manifest = self._manifest(folder, artifacts)
        meter.expect(manifest.stat().st_size, files=1)
        artifacts += send(manifest.name, manifest)
        self._require_stored(artifacts, stop)
        for name, reason in self._left_out.items():
            message = f"{name} is not published and stays on this host: {reason}"
            on_event(Warned(code="artifact_left_out", message=message))
        return artifacts

    def _send_or_leave_out(self, name: str, path: Path, upload: _Upload) -> list[Artifact]:
        """Return the artifact, or no artifact if the store has rejected the file for `LEFT_OUT_AFTER` seconds.

        Otherwise one rejected file could block the end of a run forever. Weights are never left out. If the store
        rejects every file, an error is raised for the weights or by `_require_stored`.
        """
        try:
            artifact = self._send(name, path, upload)
        except (BadRequest, Misconfigured) as error:
            since = self._refused.setdefault(name, time.monotonic())
            if not upload.weights or name in upload.weights or time.monotonic() - since < LEFT_OUT_AFTER:
                raise
            self._left_out[name] = str(error)
            return []
        self._refused.pop(name, None)
        return [artifact]

    def _send(self, name: str, path: Path, upload: _Upload) -> Artifact:
        upload.stop.raise_if_set()
        state = _state(path)
        before, artifact = self._sent.get(name, (None, None))
        if artifact is None or before != state:
            artifact = self._store_file(name, path, upload)
            if _state(path) != state:
                raise MachineFailed(f"{path} changed during its upload.")
            self._sent[name] = state, artifact
        upload.meter.finish_file()
        return artifact

    def _store_file(self, name: str, path: Path, upload: _Upload) -> Artifact:
        size, digest = path.stat().st_size, sha256_of(path, upload.stop.raise_if_set)
        expected = upload.weights.get(name)
        if expected is not None and (size, digest) != (expected.bytes, expected.sha256):
            raise WeightsChanged(f"{path} differs from the weights of the finished training.")
        ref = ObjectRef(bucket=self._bucket, key=f"{self._prefix}/{self._store.key(name)}")
        stored = self._store.upload(path, ref, upload.stop, on_bytes=upload.meter.count)
        return Artifact.of(name, stored, digest)

    def _manifest(self, folder: RunFolder, artifacts: Sequence[Artifact]) -> Path:
        manifest: JsonObject = {
            "run_id": self._job.id,
            "attempt": self._job.attempt,
            "artifacts": [{k: v for k, v in asdict(a).items() if k != "url"} for a in artifacts],
        }
        _remove(folder.manifest)
        folder.manifest.write_text(json.dumps(manifest, indent=2) + "\n")
        return folder.manifest

    def _require_stored(self, artifacts: Sequence[Artifact], stop: StopSignal) -> None:
        """Raise Unavailable if an uploaded file is not in the bucket, for example after the bucket was recreated."""
        stored = {
            info.ref.key: info.bytes
            for info in self._store.list(ObjectRef(bucket=self._bucket, key=self._prefix), stop)
        }
        lost = [artifact.name for artifact in artifacts if stored.get(artifact.path) != artifact.bytes]
        for name in lost:
            del self._sent[name]
        if lost:
            raise Unavailable(f"bucket {self._bucket!r} does not have {', '.join(lost[:5])} after the upload")


def published_files(run_dir: Path) -> list[Path]:
    """Return the published files of a run folder, without its log and manifest.

    The training process made these files, so hidden files, links, unreadable folders and files that are more than
    `DEEPEST` folders deep are left out.
    """
    files: list[Path] = []
    folders = [(run_dir, 0)]
    while folders:
        folder, depth = folders.pop()
        with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in WRITTEN_HERE:
                    continue
                if depth == 0 and entry.name in NOT_PUBLISHED_FOLDERS:
                    continue
                path = folder / entry.name
                if entry.is_dir(follow_symlinks=False) and depth < DEEPEST:
                    folders.append((path, depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    files.append(path)
    return sorted(files)


def _files_by_name(folder: RunFolder) -> dict[str, Path]:
    """Return the published files by name. The weights are first, because the time limit can end the upload.

    A file with the same name as the weights is left out. If a folder has the same name as a file, the files in the
    folder are left out, because not every store supports both names.
    """
    files: dict[str, Path] = {}
    for path in sorted(published_files(folder.path), key=lambda path: path.parent != folder.weights):
        files.setdefault(artifact_name(path, folder.path), path)
    return {
        name: path
        for name, path in files.items()
        if not any(str(parent) in files for parent in PurePosixPath(name).parents)
    }


def _unfit(name: str, path: Path, store: ObjectStore) -> str | None:
    """Return the reason why a store would reject the file, or None."""
    key = store.key(name).encode()
    if len(key) > LONGEST_KEY or max(map(len, key.split(b"/"))) > LONGEST_SEGMENT:
        return f"its name has more than {LONGEST_KEY} bytes, or more than {LONGEST_SEGMENT} bytes between two slashes"
    size = path.stat().st_size
    if size > LARGEST_FILE:
        return f"it has {size / 2**30:.1f} GiB, more than the maximum of {LARGEST_FILE >> 30} GiB"
    return None


def artifact_name(path: Path, run_dir: Path) -> str:
    """Return the name of an artifact: `best.pt` for `weights/best.pt`, the relative path for other files."""
    parts = path.relative_to(run_dir).parts
    return "/".join(parts[1:] if parts[0] == WEIGHTS else parts)


def _named_weights(finished: Finished | None, folder: RunFolder) -> dict[str, WeightsFile]:
    weights = (finished.best, finished.last) if finished else ()
    return {artifact_name(Path(file.path), folder.path): file for file in weights}


def _snapshot(log: Path) -> Path:
    """Return a copy of the log, because the original grows during the upload."""
    copy = log.with_name(f".{log.name}.uploading")
    _remove(copy)
    with log.open("rb") as source, copy.open("xb") as target:
        source.seek(max(0, source.seek(0, os.SEEK_END) - LARGEST_LOG))
        left = LARGEST_LOG
        while left and (chunk := source.read(min(left, _CHUNK))):
            left -= target.write(chunk)
    return copy


def _remove(path: Path) -> None:
    """Remove `path`, even if the training process replaced the file by a link, a pipe or a folder."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _state(path: Path) -> FileState:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
