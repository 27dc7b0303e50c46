"""Resolves a model reference to a file for a training process. This module does not load a model.

MODELS_DIR/yolo11n.pt           official weights, downloaded once or added by the operator
MODELS_DIR/any/path.pt          the operator's own files
MODELS_DIR/.architectures/      copies of packaged YAML files, with the size letter in their names
MODELS_DIR/.runs/               models from the artifacts bucket, named by a SHA-256
MODELS_DIR/.digests/            the SHA-256 of weights with an official name, written at their first use
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import assert_never

from filelock import FileLock, Timeout

from trainer.core import model_catalog
from trainer.core.dataset import ObjectRef, Task
from trainer.core.errors import BadRequest, Unavailable, disk_errors
from trainer.core.job import Requester
from trainer.core.model import Architecture, ModelFile, ModelObject, ModelOfRun, ModelRef, OfficialModel
from trainer.core.ports import ObjectStore
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.run_row import RunRow
from trainer.core.stop import StopSignal
from trainer.disk import durable
from trainer.disk.checksum import sha256_of
from trainer.remote.download import download
from trainer.weights.digests import KNOWN, Digests
from trainer.weights.fine_tuning import FineTuning, Scope
from trainer.weights.model_file import checked, is_complete, is_intact, packaged_architecture

RELEASE_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
_POLICY = RetryPolicy(tries=3, first_wait=0.5, longest_wait=5.0, total_seconds=1800.0)
_AMP_WEIGHTS = "yolo26n.pt"  # Ultralytics loads this file on a GPU to check mixed precision (AMP)
_LARGEST = 2 << 30  # bytes; ten times the largest official model
_UNUSED_SECONDS = 30 * 86_400.0  # a model in .runs is removed if it was not used for this time


@dataclass(frozen=True)
class ModelFolder:
    """Implements the port `Weights` with the folder MODELS_DIR. Safe for several threads and processes."""

    models_dir: Path
    _: KW_ONLY
    store: ObjectStore | None
    artifacts_bucket: str
    run_of: Callable[[str], RunRow | None]  # returns the row of a run
    allow_download: bool
    fine_tune_from: Scope = "owner"
    known_digests: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: KNOWN)
    release_url: str = RELEASE_URL
    policy: RetryPolicy = _POLICY

    def resolve(
        self,
        model: ModelRef,
        task: Task,
        stop: StopSignal,
        requester: Requester = Requester(),  # noqa: B008 - frozen
    ) -> Path:
        """Return the file for `model`: weights, or a YAML file whose name has the size letter for Ultralytics.

        `requester` is the author of the row, who can start only from the runs that `fine_tune_from` selects.
        Raises BadRequest (missing, not a model, not published for the task), Unavailable, MachineFailed, Stopped.
        """
        with disk_errors(self._describe):
            self._remove_damaged_amp_weights()
            match model:
                case OfficialModel():
                    return self._official(model_catalog.resolve_name(model.stem, task), stop)
                case Architecture():
                    return self._architecture(model_catalog.resolve_name(model.stem, task, scratch=True))
                case ModelFile():
                    return self._own(model.name)
                case ModelObject():
                    self._fine_tuning.require_object(model.ref.key, requester)
                    return self._object(model.ref, None, stop)
                case ModelOfRun():
                    return self._object(*self._fine_tuning.best_of(model.run_id, requester), stop)
        assert_never(model)

    @property
    def _fine_tuning(self) -> FineTuning:
        return FineTuning(run_of=self.run_of, artifacts_bucket=self.artifacts_bucket, scope=self.fine_tune_from)

    @property
    def _digests(self) -> Digests:
        return Digests(self.models_dir / ".digests", self.known_digests)

    def _describe(self, error: OSError) -> str:
        reason = error.strerror or type(error).__name__
        return f"MODELS_DIR ({self.models_dir}) cannot be used: {reason}; check the disk and permissions"

    def on_disk(self) -> list[str]:
        """Return the paths of the `.pt` files that a row can name, relative to MODELS_DIR."""
        files = (path.relative_to(self.models_dir) for path in self.models_dir.rglob("*.pt") if path.is_file())
        return sorted(str(path) for path in files if not any(part.startswith(".") for part in path.parts))

    def _own(self, name: str) -> Path:
        path = self.models_dir / name
        # os.path is used, because pathlib raises an exception for a loop of symlinks or an invalid name
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.models_dir))
        if ".." in Path(name).parts or not inside:
            raise BadRequest(f"base_model = {name!r}: the file is outside of MODELS_DIR; copy it into MODELS_DIR")
        if not os.path.isfile(path):  # noqa: PTH113
            raise BadRequest(f"base_model = {name!r}: the file is not in MODELS_DIR ({self.models_dir}); copy it there")
        return checked(path, f"base_model = {name!r}")

    def _architecture(self, name: str) -> Path:
        """Return a copy of the YAML file named `name`, because Ultralytics reads the size letter from the file name."""
        source = packaged_architecture(name)
        content = source.read_bytes()
        copy = self.models_dir / ".architectures" / f"{name}.yaml"
        if not copy.is_file() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f".{copy.name}.{os.getpid()}-{threading.get_ident()}")
            temporary.write_bytes(content)
            temporary.replace(copy)
        return copy

    def _official(self, name: str, stop: StopSignal) -> Path:
        path = self.models_dir / f"{name}.pt"
        if is_complete(path) or (path.is_file() and not self.allow_download):
            self._own(path.name)
            with self._locked(path.name, stop):
                self._digests.check(path, path.name, stop)
            return path
        if not self.allow_download:
            raise BadRequest(
                f"base_model: {path.name} is not on this worker; copy it to MODELS_DIR ({self.models_dir}), "
                "or set ALLOW_WEIGHTS_DOWNLOAD=1",
            )
        with self._locked(path.name, stop):
            if not is_complete(path):  # a damaged file counts as missing
                self._download(path, stop)
        return path

    def _remove_damaged_amp_weights(self) -> None:
        """Remove truncated weights of the AMP check, which would make every training on a GPU fail."""
        path = self.models_dir / _AMP_WEIGHTS
        if path.is_file() and not is_complete(path):
            with suppress(OSError):
                path.unlink()

    def _download(self, path: Path, stop: StopSignal) -> None:
        url = f"{self.release_url}/{path.name}"

        def fetch(to: Path) -> None:
            download(url, to, stop, largest=_LARGEST)
            if not is_intact(to):
                raise Unavailable(f"the download of {path.name} is damaged")
            self._digests.check(to, path.name, stop, is_download=True)

        fix = f"copy {path.name} to MODELS_DIR ({self.models_dir})"
        if model_catalog.find_architecture(path.stem):
            fix += f", or train from scratch with {path.stem}.yaml"
        try:
            with _incoming(path) as incoming:
                retrying(lambda: fetch(incoming), self.policy, stop)
                durable.replace(incoming, path)
        except Unavailable as error:
            # this error is retried: a host without internet access finds the file as soon as the operator copies it
            reason = f"base_model: {path.name} is not on this worker, and {error}; {fix}"
            raise Unavailable(reason, retry_after=error.retry_after) from error
        except BadRequest as error:
            raise type(error)(f"base_model: {error}; {fix}") from error

    def _object(self, ref: ObjectRef, digest: str | None, stop: StopSignal) -> Path:
        if self.store is None or ref.bucket != self.artifacts_bucket:
            raise BadRequest(f"base_model = storage:{ref.key}: only objects of the artifacts bucket can be loaded")
        info = None if digest else self.store.stat(ref)
        version = f"{ref.bucket}/{ref.key}\0{info.etag}\0{info.bytes}".encode() if info else b""
        path = self.models_dir / ".runs" / f"{digest or hashlib.sha256(version).hexdigest()}.pt"
        with self._locked(path.name, stop):
            if not is_complete(path):
                _remove_unused(path.parent)
                with _incoming(path) as incoming:
                    self.store.download(ref, incoming, stop, expected=info)
                    if digest and sha256_of(incoming) != digest:
                        raise BadRequest(
                            f"base_model = storage:{ref.key}: the object is not the file that the run published"
                        )
                    durable.replace(checked(incoming, f"base_model = storage:{ref.key}"), path)
            path.touch()
        return path

    @contextmanager
    def _locked(self, name: str, stop: StopSignal) -> Iterator[None]:
        """Hold the lock of the file `name` against all other threads and processes. Raises Stopped."""
        locks = self.models_dir / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{name}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                stop.raise_if_set()
        try:
            yield
        finally:
            lock.release()


def _remove_unused(cache: Path) -> None:
    oldest = time.time() - _UNUSED_SECONDS
    for path in cache.glob("*.pt"):
        with suppress(OSError):  # a folder, or a file that another process removed
            if path.lstat().st_mtime < oldest:
                path.unlink()


@contextmanager
def _incoming(path: Path) -> Iterator[Path]:
    """Yield a temporary path for `path`. The caller holds the lock of `path`.

    The next call overwrites a file that a crash left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = path.with_name(f".{path.name}")
    try:
        yield incoming
    finally:
        incoming.unlink(missing_ok=True)
