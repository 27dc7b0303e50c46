"""Model references become files: from the folder, by one verified download, or from our bucket; others are refused."""

import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.core import model_catalog
from trainer.core.dataset import ObjectRef, Task
from trainer.core.errors import BadRequest, MachineFailed, ObjectMissing, Unavailable
from trainer.core.model import Architecture, ModelFile, ModelObject, ModelOfRun, OfficialModel
from trainer.core.retry import RetryPolicy
from trainer.core.run_row import RunRow
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.disk import durable
from trainer.storage.local import LocalObjectStore
from trainer.weights.model_folder import ModelFolder

RUN = "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a11"
BUCKET = "training-artifacts"
QUICK = RetryPolicy(tries=3, first_wait=0.001, longest_wait=0.002, total_seconds=20.0)
YOLO11N = OfficialModel(stem="yolo11n")


def weights(payload: bytes = b"w" * 5000) -> bytes:
    """Return a zip archive without compression, like those of torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("best/data.pkl", payload)
    return buffer.getvalue()


class Release(http.server.ThreadingHTTPServer):
    """A release server that counts downloads, and sends the responses in `answers`, then `body`."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []
        self.body = weights()
        self.answers: list[tuple[int, bytes | None]] = []
        self.trickle = threading.Event()
        self.slow = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v8.4.0"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Release

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        status, body = self.server.answers.pop(0) if self.server.answers else (200, self.server.body)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"/moved{self.path}")
        declared = self.server.body if body is None else body
        self.send_header("Content-Length", str(len(declared)))
        self.end_headers()
        if self.server.slow:
            self.wfile.write(declared[:100])
            self.wfile.flush()
            self.server.trickle.wait(60)
        elif body is None:
            self.wfile.write(declared[: len(declared) // 2])  # and close the connection
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def release():
    server = Release()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.trickle.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(tmp_path):
    return LocalObjectStore(tmp_path / "store")


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def folder(models, store):
    def make(*, rows=None, **options) -> ModelFolder:
        given = {"store": store, "artifacts_bucket": BUCKET, "allow_download": False, "policy": QUICK} | options
        return ModelFolder(models, run_of=(rows or {}).get, **given)

    return make


def put(models: Path, name: str, content: bytes | None = None) -> Path:
    path = models / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights() if content is None else content)
    return path


def leftovers(models: Path) -> list[str]:
    return [str(p.relative_to(models)) for p in models.rglob("*") if p.is_file() and p.suffix != ".lock"]


# ── official weights ──


@pytest.mark.parametrize(
    ("task", "name"),
    [(Task.DETECT, "yolo11n.pt"), (Task.SEGMENT, "yolo11n-seg.pt"), (Task.CLASSIFY, "yolo11n-cls.pt")],
)
def test_official_model_in_folder_is_used_in_task_variant(folder, models, task, name):
    path = put(models, name)
    assert folder().resolve(YOLO11N, task, StopSignal()) == path


def test_missing_model_is_downloaded_once(folder, models, release):
    there = folder(allow_download=True, release_url=release.url)
    path = there.resolve(YOLO11N, Task.SEGMENT, StopSignal())
    assert path == models / "yolo11n-seg.pt"
    assert path.read_bytes() == release.body
    assert there.resolve(YOLO11N, Task.SEGMENT, StopSignal()) == path
    assert release.paths == ["/v8.4.0/yolo11n-seg.pt"]
    assert leftovers(models) == ["yolo11n-seg.pt"]


def test_leftover_of_crashed_download_is_overwritten(folder, models, release):
    put(models, ".yolo11n.pt", b"half of it")
    folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert leftovers(models) == ["yolo11n.pt"]


@pytest.mark.parametrize("damaged", [b"", weights()[:2000], b"\0" * 5000], ids=["empty", "cut", "zeros"])
def test_damaged_official_model_is_downloaded_again(folder, models, release, damaged):
    put(models, "yolo11n.pt", damaged)
    path = folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert path.read_bytes() == release.body
    put(models, "yolo11n.pt", damaged)
    with pytest.raises(BadRequest, match=r"yolo11n\.pt.*not a complete PyTorch file"):
        folder().resolve(YOLO11N, Task.DETECT, StopSignal())


@pytest.mark.parametrize("damaged", [b"", weights()[:2000], b"\0" * 5000], ids=["empty", "cut", "zeros"])
def test_damaged_model_of_run_is_fetched_again(folder, store, tmp_path, damaged):
    there = folder()
    ref = upload(store, tmp_path, "best.pt", weights(b"one"))
    path = there.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    path.write_bytes(damaged)
    assert there.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal()) == path
    assert path.read_bytes() == weights(b"one")


def test_damaged_amp_weights_are_removed_and_intact_ones_stay(folder, models):
    put(models, "yolo11n.pt")
    put(models, "yolo26n.pt", b"")
    folder().resolve(YOLO11N, Task.DETECT, StopSignal())
    assert leftovers(models) == ["yolo11n.pt"]
    put(models, "yolo26n.pt")
    folder().resolve(YOLO11N, Task.DETECT, StopSignal())
    assert sorted(leftovers(models)) == ["yolo11n.pt", "yolo26n.pt"]


def test_weights_are_synced_before_rename(folder, store, models, release, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", lambda path: synced.append(path.name))
    there = folder(allow_download=True, release_url=release.url)
    there.resolve(YOLO11N, Task.DETECT, StopSignal())
    assert synced == [".yolo11n.pt", "models"]
    path = there.resolve(ModelObject(ref=upload(store, tmp_path, "best.pt", weights())), Task.DETECT, StopSignal())
    assert synced[-2:] == [f".{path.name}", ".runs"]


def test_redirect_is_followed(folder, release):
    release.answers = [(302, b"")]
    path = folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert path.read_bytes() == release.body


def test_parallel_requests_download_once(models, store, release):
    def resolve(_: int) -> Path:
        own = ModelFolder(
            models, store=store, artifacts_bucket=BUCKET, run_of={}.get, allow_download=True, release_url=release.url,
        )  # fmt: skip
        return own.resolve(YOLO11N, Task.DETECT, StopSignal())

    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(resolve, range(8)))
    assert paths == {models / "yolo11n.pt"}
    assert len(release.paths) == 1


@pytest.mark.parametrize("first", [(503, b"busy"), (429, b""), (200, None), (200, b"<html>not weights</html>")])
def test_failed_download_is_retried(folder, models, release, first):
    release.answers = [first]
    path = folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert path.read_bytes() == release.body
    assert len(release.paths) == 2


def test_download_with_wrong_checksum_is_discarded(folder, models, release):
    broken = bytearray(weights())
    broken[1000] ^= 1
    release.body = bytes(broken)
    with pytest.raises(Unavailable, match=r"yolo11n\.pt is damaged"):
        folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert len(release.paths) == QUICK.tries
    assert leftovers(models) == []


def test_missing_release_file_is_refused(folder, models, release):
    release.answers = [(404, b"not found")]
    with pytest.raises(
        ObjectMissing, match=r"yolo11n\.pt cannot be downloaded: the server answers 404; copy .*MODELS_DIR"
    ):
        folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert len(release.paths) == 1
    assert leftovers(models) == []


def test_error_without_connection_names_folder(folder, models, release):
    closed = f"http://127.0.0.1:{free_port()}/x"
    with pytest.raises(Unavailable) as refused:
        folder(allow_download=True, release_url=closed).resolve(YOLO11N, Task.POSE, StopSignal())
    assert str(refused.value) == (
        "base_model: yolo11n-pose.pt is not on this worker, and there is no connection to 127.0.0.1; "
        f"copy yolo11n-pose.pt to MODELS_DIR ({models}), or train from scratch with yolo11n-pose.yaml"
    )
    assert leftovers(models) == []


def test_disabled_download_sends_no_request(folder, models, release):
    with pytest.raises(
        BadRequest, match=r"yolo11n.pt is not on this worker; copy it to MODELS_DIR .*ALLOW_WEIGHTS_DOWNLOAD=1"
    ):
        folder(allow_download=False, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert release.paths == []


def test_stop_ends_stalled_download(folder, models, release):
    release.slow = True
    stop = StopSignal()
    timer = threading.Timer(0.1, stop.set, (StopReason.CANCELED,))
    timer.start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, stop)
    timer.join()
    assert time.monotonic() - started < 15
    assert leftovers(models) == []


def test_stop_ends_wait_for_other_download(folder, release):
    release.slow = True
    there, stop = folder(allow_download=True, release_url=release.url), StopSignal()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(there.resolve, YOLO11N, Task.DETECT, StopSignal())
        while not release.paths:
            time.sleep(0.01)
        stop.set(StopReason.CANCELED)
        with pytest.raises(Stopped):
            there.resolve(YOLO11N, Task.DETECT, stop)
        release.slow = False
        release.trickle.set()
        assert other.exception() is None or isinstance(other.exception(), Unavailable)


def test_model_without_weights_for_task_is_refused_before_download(folder, release):
    with pytest.raises(BadRequest, match="only for detect"):
        folder(allow_download=True, release_url=release.url).resolve(
            OfficialModel(stem="yolov10n"), Task.OBB, StopSignal()
        )
    assert release.paths == []


# ── architectures ──


def test_architecture_copy_has_size_in_name(folder, models):
    path = folder().resolve(Architecture(stem="yolo11s"), Task.SEGMENT, StopSignal())
    assert path == models / ".architectures" / "yolo11s-seg.yaml"
    assert b"scales:" in path.read_bytes()
    assert b"Segment" in path.read_bytes()


def test_changed_copy_is_replaced(folder):
    there = folder()
    path = there.resolve(Architecture(stem="yolo11n"), Task.DETECT, StopSignal())
    original = path.read_bytes()
    path.write_text("activation: __import__('os').system('true')")
    assert there.resolve(Architecture(stem="yolo11n"), Task.DETECT, StopSignal()) == path
    assert path.read_bytes() == original


def test_every_catalog_architecture_is_in_package(folder):
    there = folder()
    for stem, by_task in model_catalog.ARCHITECTURES.items():
        for task in by_task:
            assert there.resolve(Architecture(stem=stem), task, StopSignal()).stat().st_size > 100


READ_BY_ULTRALYTICS = """
import json, sys
from ultralytics.nn.tasks import yaml_model_load
print(json.dumps({path: yaml_model_load(path)["scale"] for path in json.load(sys.stdin)}))
"""


def test_ultralytics_reads_size_from_name_of_copy(folder, models, tmp_path):
    there, wanted = folder(), {}
    for stem, by_task in model_catalog.ARCHITECTURES.items():
        size = re.match(r"yolov?(?:3|5|6|8|11|12|26)([nsmlx])(-|$)", stem)
        for task in by_task:
            path = there.resolve(Architecture(stem=stem), task, StopSignal())
            wanted[str(path)] = size[1] if size else None
    environment = {"PATH": os.environ["PATH"], "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", READ_BY_ULTRALYTICS]
    done = subprocess.run(
        command,
        input=json.dumps(list(wanted)),
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert len(read) > 100
    assert {path: scale for path, scale in wanted.items() if scale and read[path] != scale} == {}


# ── files of the operator ──


def test_file_of_operator_is_found(folder, models):
    path = put(models, "team/a.pt")
    assert folder().resolve(ModelFile(name="team/a.pt"), Task.DETECT, StopSignal()) == path


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", b"\x80\x02}q\x00.", weights()[:-30], b"PK\x03\x04" + b"\0" * 1000]
)
def test_file_not_saved_by_torch_is_refused(folder, models, content):
    put(models, "a.pt", content)
    put(models, "yolo11n.pt", content)
    for model, name in ((ModelFile(name="a.pt"), "a.pt"), (YOLO11N, "yolo11n.pt")):
        with pytest.raises(BadRequest, match=f"{name}.*not a complete PyTorch file"):
            folder().resolve(model, Task.DETECT, StopSignal())


def test_missing_file_names_folder(folder):
    with pytest.raises(BadRequest, match="no such file in MODELS_DIR"):
        folder().resolve(ModelFile(name="nothing.pt"), Task.DETECT, StopSignal())


def test_folder_is_not_a_model(folder, models):
    (models / "dir.pt").mkdir(parents=True)
    with pytest.raises(BadRequest, match="no such file"):
        folder().resolve(ModelFile(name="dir.pt"), Task.DETECT, StopSignal())


@pytest.mark.parametrize("name", ["../outside.pt", "link.pt", "linked/outside.pt", "a/../../outside.pt"])
def test_path_outside_of_folder_is_refused(folder, models, tmp_path, name):
    (tmp_path / "outside.pt").write_bytes(weights())
    (models / "a").mkdir(parents=True)
    (models / "link.pt").symlink_to(tmp_path / "outside.pt")
    (models / "linked").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BadRequest, match="is outside of MODELS_DIR"):
        folder().resolve(ModelFile(name=name), Task.DETECT, StopSignal())


def test_absolute_path_is_refused(folder, tmp_path):
    (tmp_path / "outside.pt").write_bytes(weights())
    with pytest.raises(BadRequest, match="is outside of"):
        folder().resolve(ModelFile(name=str(tmp_path / "outside.pt")), Task.DETECT, StopSignal())


def test_files_on_disk_are_listed(folder, models):
    for name in ("yolo11n.pt", "team/a.pt", ".runs/b.pt", "notes.txt"):
        put(models, name)
    assert folder().on_disk() == ["team/a.pt", "yolo11n.pt"]


def test_unusable_folder_is_machine_failure(models, store):
    models.write_text("a file where the folder should be")
    blocked = ModelFolder(models, store=store, artifacts_bucket=BUCKET, run_of={}.get, allow_download=True)
    with pytest.raises(MachineFailed, match=r"MODELS_DIR .* cannot be used"):
        blocked.resolve(Architecture(stem="yolo11n"), Task.DETECT, StopSignal())


# ── objects and models of runs ──


def upload(store: LocalObjectStore, tmp_path: Path, key: str, content: bytes) -> ObjectRef:
    source = tmp_path / "source"
    source.write_bytes(content)
    ref = ObjectRef(bucket=BUCKET, key=key)
    store.upload(source, ref, StopSignal())
    return ref


def completed(artifacts: object, status: str = "completed") -> dict:
    return {RUN: RunRow(id=RUN, status=status, results={"mAP": 0.5, "artifacts": artifacts})}


def test_object_is_fetched_again_after_change(folder, store, models, tmp_path):
    there = folder()
    ref = upload(store, tmp_path, "training_runs/x/1/best.pt", weights(b"one"))
    first = there.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    assert first.read_bytes() == weights(b"one")
    assert there.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal()) == first
    upload(store, tmp_path, ref.key, weights(b"another"))
    second = there.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    assert second.read_bytes() == weights(b"another")
    assert first.is_relative_to(models / ".runs")


def test_object_of_other_bucket_or_without_store_is_refused(folder):
    other = ModelObject(ref=ObjectRef(bucket="datasets", key="evil.pt"))
    with pytest.raises(BadRequest, match="only objects of the artifacts bucket"):
        folder().resolve(other, Task.DETECT, StopSignal())
    own = ModelObject(ref=ObjectRef(bucket=BUCKET, key="best.pt"))
    with pytest.raises(BadRequest, match="only objects of the artifacts bucket"):
        folder(store=None).resolve(own, Task.DETECT, StopSignal())


def test_missing_object_or_invalid_model_is_refused(folder, store, models, tmp_path):
    with pytest.raises(ObjectMissing):
        folder().resolve(ModelObject(ref=ObjectRef(bucket=BUCKET, key="none.pt")), Task.DETECT, StopSignal())
    ref = upload(store, tmp_path, "bad.pt", b"os.system")
    with pytest.raises(BadRequest, match=r"storage:bad\.pt: not a complete PyTorch file"):
        folder().resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    assert leftovers(models) == []


@pytest.mark.parametrize("with_digest", [True, False])
def test_best_model_of_completed_run_is_fetched(folder, store, tmp_path, with_digest):
    ref = upload(store, tmp_path, f"training_runs/{RUN}/1/best.pt", weights(b"best"))
    artifact = {"name": "best.pt", "path": ref.key, "url": "http://ignored"}
    if with_digest:
        artifact["sha256"] = hashlib.sha256(weights(b"best")).hexdigest()
    there = folder(rows=completed([{"name": "last.pt", "path": "no"}, artifact]))
    path = there.resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal())
    assert path.read_bytes() == weights(b"best")
    if with_digest:  # the checksum is the file name, so the second time needs no store
        store.delete(ref)
        assert there.resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal()) == path


def test_changed_model_of_run_is_refused(folder, store, models, tmp_path):
    ref = upload(store, tmp_path, "best.pt", weights(b"swapped"))
    rows = completed([{"name": "best.pt", "path": ref.key, "sha256": "0" * 64}])
    with pytest.raises(BadRequest, match="not the file that the run published"):
        folder(rows=rows).resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal())
    assert leftovers(models) == []


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({}, "there is no run with this id"),
        (completed([], "failed"), "that run is failed; only a completed run has a model"),
        (completed([], "running"), "that run is running"),
        (completed([]), "published no best.pt"),
        (completed(None), "published no best.pt"),
        (completed("best.pt"), "published no best.pt"),
        (completed(["best.pt", None, {"name": "best.pt"}, {"name": "best.pt", "path": 3}]), "published no best.pt"),
        ({RUN: RunRow(id=RUN, status="completed", results="text")}, "published no best.pt"),
        ({RUN: RunRow(id=RUN, status="completed")}, "published no best.pt"),
    ],
)
def test_run_without_model_is_refused_with_reason(folder, rows, reason):
    with pytest.raises(BadRequest, match=reason):
        folder(rows=rows).resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal())


def test_models_unused_for_a_month_are_removed(folder, store, models, tmp_path):
    old, recent = put(models, ".runs/old.pt"), put(models, ".runs/recent.pt")
    month_ago = time.time() - 31 * 86_400
    os.utime(old, (month_ago, month_ago))
    ref = upload(store, tmp_path, "best.pt", weights())
    folder().resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    assert not old.exists()
    assert recent.exists()


def free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return server.server_port
