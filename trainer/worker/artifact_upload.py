"""Upload of the artifacts of an attempt: the published files and their keys.

Every key starts with the prefix of the attempt (core/artifact_keys.py). No other attempt writes under this prefix.
Readers use the artifacts only after the row points to them. Updates of the row require the fencing token.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from trainer.core.artifact_keys import attempt_prefix
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, MachineFailed, Misconfigured, Unavailable
from trainer.core.events import Event, Finished, Phase, Warned, WeightsFile
from trainer.core.job import Job, JsonObject
from trainer.core.ports import ObjectStore
from trainer.core.results import Artifact
from trainer.core.run_folder import RunFolder
from trainer.core.stop import StopSignal
from trainer.core.transfer import Meter
from trainer.disk.removal import remove_tree
from trainer.disk.untrusted_folder import LARGEST_FILE, FileState, Unreadable, UntrustedFile, UntrustedFolder
from trainer.worker.artifact_selection import Selection, select

PARALLEL = 4  # number of parallel uploads
LARGEST_LOG = 256 * 2**20  # bytes; only the end of a larger log is published
LEFT_OUT_AFTER = 600.0  # seconds from the first rejection of a file until a finished run is published without the file
_SNAPSHOT = ".run.log.uploading"


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
        self._selection = Selection()

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
        weights = finished.weights if finished else {}
        with UntrustedFolder(folder.output.path) as output, UntrustedFolder(log.parent) as own:
            selection = self._selection = select(output, self._store)
            files = {name: entry.path for name, entry in selection.files.items()}
            if gone := weights.keys() - files.keys():
                raise WeightsChanged(f"{folder.output.path} does not contain {', '.join(sorted(gone))}.")
            total = sum(entry.bytes for entry in selection.files.values())
            meter = Meter(on_event, total_files=len(files), total_bytes=total, phase=Phase.UPLOADING)
            upload = _Upload(weights=weights, stop=stop, meter=meter)

            def send(name: str, path: str) -> list[Artifact]:
                return self._send_or_leave_out(name, output, path, upload)

            with ThreadPoolExecutor(PARALLEL, thread_name_prefix="upload") as pool:
                artifacts = sorted(chain(*pool.map(send, files, files.values())), key=lambda artifact: artifact.name)
            if size := _snapshot(own, log):
                meter.expect(size, files=1)
                artifacts += self._send_or_leave_out(log.name, own, _SNAPSHOT, upload)
        with UntrustedFolder(folder.path) as own:
            meter.expect(self._write_manifest(folder, artifacts), files=1)
            artifacts += self._send_or_leave_out(folder.manifest.name, own, folder.manifest.name, upload)
        self._require_stored(artifacts, stop)
        for message in selection.messages():
            on_event(Warned(code="artifact_left_out", message=message))
        return artifacts

    def _send_or_leave_out(self, name: str, folder: UntrustedFolder, path: str, upload: _Upload) -> list[Artifact]:
        """Return the artifact, or no artifact if the store has rejected the file for `LEFT_OUT_AFTER` seconds.

        Otherwise one rejected file could block the end of a run forever. Weights are never left out. If the store
        rejects every file, an error is raised for the weights or by `_require_stored`.
        """
        try:
            artifact = self._send(name, folder, path, upload)
        except Unreadable as error:
            if name in upload.weights:
                raise WeightsChanged(f"{name} cannot be read: {error.strerror}.") from error
            self._selection.leave_out(name, f"it cannot be read: {error.strerror}")
            return []
        except (BadRequest, Misconfigured) as error:
            since = self._refused.setdefault(name, time.monotonic())
            if not upload.weights or name in upload.weights or time.monotonic() - since < LEFT_OUT_AFTER:
                raise
            self._selection.leave_out(name, str(error))
            return []
        self._refused.pop(name, None)
        return [artifact]

    def _send(self, name: str, folder: UntrustedFolder, path: str, upload: _Upload) -> Artifact:
        upload.stop.raise_if_set()
        with folder.file(path) as file:
            state = file.state
            before, artifact = self._sent.get(name, (None, None))
            if artifact is None or before != state:
                artifact = self._store_file(name, file, upload)
                if file.state != state:
                    raise MachineFailed(f"{name} changed during its upload.")
                self._sent[name] = state, artifact
        upload.meter.finish_file()
        return artifact

    def _store_file(self, name: str, file: UntrustedFile, upload: _Upload) -> Artifact:
        if file.bytes > LARGEST_FILE:
            raise Unreadable(errno.EFBIG, "it became too large", name)
        digest = file.sha256(upload.stop.raise_if_set)
        expected = upload.weights.get(name)
        if expected is not None and (file.bytes, digest) != (expected.bytes, expected.sha256):
            raise WeightsChanged(f"{name} differs from the weights of the finished training.")
        ref = ObjectRef(bucket=self._bucket, key=f"{self._prefix}/{self._store.key(name)}")
        stored = self._store.upload(file.path, ref, upload.stop, on_bytes=upload.meter.count)
        return Artifact.of(name, stored, digest)

    def _write_manifest(self, folder: RunFolder, artifacts: Sequence[Artifact]) -> int:
        """Write the manifest and return its size in bytes."""
        manifest: JsonObject = {
            "run_id": self._job.id,
            "attempt": self._job.attempt,
            "artifacts": [{k: v for k, v in asdict(a).items() if k != "url"} for a in artifacts],
        }
        _remove(folder.manifest)
        with folder.manifest.open("x") as file:
            return file.write(json.dumps(manifest, indent=2) + "\n")

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


def _snapshot(own: UntrustedFolder, log: Path) -> int:
    """Copy the log, because the original grows during the upload. Return the size in bytes; 0 without a log."""
    copy = log.with_name(_SNAPSHOT)
    _remove(copy)
    with suppress(Unreadable), own.file(log.name) as source, copy.open("xb") as target:
        target.writelines(source.chunks(start=max(0, source.bytes - LARGEST_LOG)))
        return target.tell()
    return 0


def _remove(path: Path) -> None:
    """Remove `path`, even if it is a link, a pipe or a folder, which a process without a sandbox can create."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
