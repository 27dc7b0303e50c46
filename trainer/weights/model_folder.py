"""From a model's name to a file that the child may load. Nothing here opens a model: that is the child's business.

MODELS_DIR/yolo11n.pt           published weights, put there by the operator or downloaded once
MODELS_DIR/any/path.pt          the operator's own files
MODELS_DIR/.architectures/      copies of packaged YAMLs, named with their size letter
MODELS_DIR/.runs/               results of earlier runs, by content
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import assert_never

from filelock import FileLock, Timeout

from trainer.core import model_catalog
from trainer.core.dataset import ObjectRef, Task
from trainer.core.errors import BadRequest, Unavailable, disk_failed
from trainer.core.job import Status
from trainer.core.model import Architecture, ModelFile, ModelObject, ModelOfRun, ModelRef, OfficialModel
from trainer.core.ports import ObjectInfo, ObjectStore
from trainer.core.results import artifacts_in
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.run_row import RunRow
from trainer.core.stop import StopSignal
from trainer.disk import durable
from trainer.remote.download import download

RELEASE_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
_POLICY = RetryPolicy(tries=3, first_wait=0.5, longest_wait=5.0, total_seconds=1800.0)
_AMP_WEIGHTS = "yolo26n.pt"  # Ultralytics loads them on a GPU to see whether half precision works
_LARGEST = 2 << 30  # bytes; the largest published model has a tenth of it
_UNUSED_SECONDS = 30 * 86_400.0  # after which a cached result of a run is removed


class ModelFolder:
    """`Weights` over MODELS_DIR. `run_of` gives the row of a run, or None; safe for several threads and processes."""

    def __init__(
        self,
        models_dir: Path,
        *,
        store: ObjectStore | None,
        artifacts_bucket: str,
        run_of: Callable[[str], RunRow | None],
        allow_download: bool,
        release_url: str = RELEASE_URL,
        policy: RetryPolicy = _POLICY,
    ) -> None:
        self._folder = models_dir
        self._store = store
        self._bucket = artifacts_bucket
        self._run_of = run_of
        self._allow_download = allow_download
        self._release_url = release_url
        self._policy = policy

    def resolve(self, model: ModelRef, task: Task, stop: StopSignal) -> Path:
        """The file for `model`: weights, or a YAML with the size letter in its name, as Ultralytics reads it.

        Raises BadRequest (nothing there, not a model, not published for the task), Unavailable, MachineFailed, Stopped.
        """
        with _disk_errors(self._folder):
            self._drop_damaged_amp_weights()
            match model:
                case OfficialModel():
                    return self._official(model_catalog.resolve_name(model.stem, task), stop)
                case Architecture():
                    return self._architecture(model_catalog.resolve_name(model.stem, task, scratch=True))
                case ModelFile():
                    return self._own(model.name)
                case ModelObject():
                    return self._object(model.ref, None, stop)
                case ModelOfRun():
                    return self._object(*self._best_of(model.run_id), stop)
        assert_never(model)

    def on_disk(self) -> list[str]:
        """The `.pt` files that a row may name, relative to the folder."""
        files = (path.relative_to(self._folder) for path in self._folder.rglob("*.pt") if path.is_file())
        return sorted(str(path) for path in files if not any(part.startswith(".") for part in path.parts))

    # ── files of this host ──

    def _own(self, name: str) -> Path:
        path = self._folder / name
        # pathlib's own raise for a loop of links, or a name that no file can have
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._folder))
        if ".." in Path(name).parts or not inside:
            raise BadRequest(f"base_model = {name!r}: leads out of MODELS_DIR; put the file itself there")
        if not os.path.isfile(path):  # noqa: PTH113
            raise BadRequest(f"base_model = {name!r}: no such file below MODELS_DIR of this worker; put it there")
        return _must_be_model(path, f"base_model = {name!r}")

    def _architecture(self, name: str) -> Path:
        """A copy called `name`: Ultralytics reads the size letter from the file's name, its own YAML has none."""
        source = _packaged(name)
        content = source.read_bytes()
        copy = self._folder / ".architectures" / f"{name}.yaml"
        if not copy.is_file() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f".{copy.name}.{os.getpid()}-{threading.get_ident()}")
            temporary.write_bytes(content)
            temporary.replace(copy)
        return copy

    # ── published weights ──

    def _official(self, name: str, stop: StopSignal) -> Path:
        path = self._folder / f"{name}.pt"
        if _is_archive(path) or (path.is_file() and not self._allow_download):
            return self._own(path.name)
        if not self._allow_download:
            raise BadRequest(
                f"base_model: {path.name} is not on this worker; put it into MODELS_DIR ({self._folder}), "
                "or set ALLOW_WEIGHTS_DOWNLOAD=1",
            )
        with self._locked(path.name, stop):
            if not _is_archive(path):  # damaged counts as missing
                self._download(path, stop)
        return path

    def _drop_damaged_amp_weights(self) -> None:
        """Remove the weights of the half-precision check if they are cut: with them every training on a GPU would fail."""
        path = self._folder / _AMP_WEIGHTS
        if path.is_file() and not _is_archive(path):
            with suppress(OSError):
                path.unlink()

    def _download(self, path: Path, stop: StopSignal) -> None:
        url = f"{self._release_url}/{path.name}"

        def fetch(to: Path) -> None:
            download(url, to, stop, largest=_LARGEST)
            if not _is_intact(to):
                raise Unavailable(f"the download of {path.name} arrived damaged")

        mend = f"put {path.name} into MODELS_DIR ({self._folder})"
        if model_catalog.find_architecture(path.stem):
            mend += f", or train from scratch with {path.stem}.yaml"
        try:
            with _incoming(path) as incoming:
                retrying(lambda: fetch(incoming), self._policy, stop)
                durable.replace(incoming, path)
        except Unavailable as error:
            # a host without a way out fails in the end, and a file that is put there meanwhile is taken at once
            reason = f"base_model: {path.name} is not on this worker, and {error}; {mend}"
            raise Unavailable(reason, retry_after=error.retry_after) from error
        except BadRequest as error:
            raise type(error)(f"base_model: {error}; {mend}") from error

    # ── results of earlier runs ──

    def _best_of(self, run_id: str) -> tuple[ObjectRef, str | None]:
        """Where best.pt of a completed run is, and the SHA-256 of its content if the row knows it."""
        row = self._run_of(run_id)
        if row is None:
            raise BadRequest(f"base_model = {run_id}: there is no run with this id; take the id of a completed run")
        if row.status != Status.COMPLETED:
            raise BadRequest(f"base_model = {run_id}: that run is {row.status}; only a completed run has a model")
        for artifact in artifacts_in(row.results):
            if artifact.name == "best.pt":
                digest = artifact.sha256 if _is_digest(artifact.sha256) else None
                return artifact.ref(self._bucket), digest
        raise BadRequest(f"base_model = {run_id}: that run published no best.pt; take another run")

    def _object(self, ref: ObjectRef, digest: str | None, stop: StopSignal) -> Path:
        if self._store is None or ref.bucket != self._bucket:
            raise BadRequest(f"base_model = storage:{ref.key}: only objects of the artifacts bucket can be loaded")
        info = None if digest else self._store.stat(ref)
        path = self._folder / ".runs" / f"{digest or _identity(info)}.pt"
        with self._locked(path.name, stop):
            if not _is_archive(path):
                _forget_unused(path.parent)
                with _incoming(path) as incoming:
                    self._store.download(ref, incoming, stop, expected=info)
                    if digest and _sha256(incoming) != digest:
                        raise BadRequest(f"base_model = storage:{ref.key}: not the file that the run published")
                    durable.replace(_must_be_model(incoming, f"base_model = storage:{ref.key}"), path)
            path.touch()
        return path

    @contextmanager
    def _locked(self, name: str, stop: StopSignal) -> Iterator[None]:
        """One at a time for `name`, among all processes of this host."""
        locks = self._folder / ".locks"
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


def _is_archive(path: Path) -> bool:
    """Whether the file is there and has a zip archive's directory, which is at the end."""
    return path.is_file() and zipfile.is_zipfile(path)


def _is_intact(path: Path) -> bool:
    """Whether it is a zip archive, as torch writes them, with every checksum in order."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def _must_be_model(path: Path, what: str) -> Path:
    """The path, if a look at its directory says that torch wrote it, that it is complete, and no more than it seems."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        raise BadRequest(f"{what}: not a complete PyTorch file (a zip archive); upload it again") from None
    # torch packs nothing; what is packed, or lies over another member, could be a thousand times as large in memory
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise BadRequest(f"{what}: its contents are larger than the file; save it again with torch.save")
    return path


def _packaged(name: str) -> Path:
    """The YAML of an architecture in the installed Ultralytics, found without importing it."""
    spec = importlib.util.find_spec("ultralytics")
    folders = spec.submodule_search_locations if spec else None
    unsized = re.sub(r"(\d+)[nslmx](?=-|$)", r"\1", name, count=1)
    for folder in folders or ():
        for candidate in (name, unsized):
            found = next(Path(folder, "cfg", "models").rglob(f"{candidate}.yaml"), None)
            if found:
                return found
    raise BadRequest(f"base_model: the installed Ultralytics has no architecture {name}.yaml; choose another")


def _identity(info: ObjectInfo | None) -> str:
    assert info is not None
    return hashlib.sha256(f"{info.ref.bucket}/{info.ref.key}\0{info.etag}\0{info.bytes}".encode()).hexdigest()


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget_unused(cache: Path) -> None:
    oldest = time.time() - _UNUSED_SECONDS
    for path in cache.glob("*.pt"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


@contextmanager
def _incoming(path: Path) -> Iterator[Path]:
    """Where `path` is made; its lock is held. The name stays the same, so what a crash leaves is used up again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = path.with_name(f".{path.name}")
    try:
        yield incoming
    finally:
        incoming.unlink(missing_ok=True)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_failed(
            error, f"cannot use MODELS_DIR ({folder}): {error.strerror or type(error).__name__}"
        ) from error
