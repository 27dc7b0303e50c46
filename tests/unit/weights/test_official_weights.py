"""Official weights are read from MODELS_DIR. Missing weights are downloaded once and verified."""

import http.server
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.weights.release import BUCKET, QUICK, YOLO11N, files_in, put, upload, weights
from trainer.core.dataset import Task
from trainer.core.errors import BadRequest, ObjectMissing, Unavailable
from trainer.core.model import ModelObject, OfficialModel
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.disk import durable
from trainer.weights.model_folder import ModelFolder


@pytest.mark.parametrize(
    ("task", "name"),
    [(Task.DETECT, "yolo11n.pt"), (Task.SEGMENT, "yolo11n-seg.pt"), (Task.CLASSIFY, "yolo11n-cls.pt")],
)
def test_official_weights_for_task_are_found_in_models_dir(folder, models, task, name):
    path = put(models, name)
    assert folder().resolve(YOLO11N, task, StopSignal()) == path


def test_missing_model_is_downloaded_once(folder, models, release):
    model_folder = folder(allow_download=True, release_url=release.url)
    path = model_folder.resolve(YOLO11N, Task.SEGMENT, StopSignal())
    assert path == models / "yolo11n-seg.pt"
    assert path.read_bytes() == release.body
    assert model_folder.resolve(YOLO11N, Task.SEGMENT, StopSignal()) == path
    assert release.paths == ["/v8.4.0/yolo11n-seg.pt"]
    assert files_in(models) == ["yolo11n-seg.pt"]


def test_leftover_of_crashed_download_is_overwritten(folder, models, release):
    put(models, ".yolo11n.pt", b"half of it")
    folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert files_in(models) == ["yolo11n.pt"]


@pytest.mark.parametrize("damaged", [b"", weights()[:2000], b"\0" * 5000], ids=["empty", "truncated", "zeros"])
def test_damaged_weights_are_downloaded_again_or_rejected_if_download_is_disabled(folder, models, release, damaged):
    put(models, "yolo11n.pt", damaged)
    path = folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert path.read_bytes() == release.body
    put(models, "yolo11n.pt", damaged)
    with pytest.raises(BadRequest, match=r"yolo11n\.pt.*not a complete PyTorch file"):
        folder().resolve(YOLO11N, Task.DETECT, StopSignal())


def test_damaged_amp_weights_are_removed_and_intact_amp_weights_stay(folder, models):
    put(models, "yolo11n.pt")
    put(models, "yolo26n.pt", b"")
    folder().resolve(YOLO11N, Task.DETECT, StopSignal())
    assert files_in(models) == ["yolo11n.pt"]
    put(models, "yolo26n.pt")
    folder().resolve(YOLO11N, Task.DETECT, StopSignal())
    assert sorted(files_in(models)) == ["yolo11n.pt", "yolo26n.pt"]


def test_weights_are_synced_before_rename(folder, store, models, release, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", lambda path: synced.append(path.name))
    model_folder = folder(allow_download=True, release_url=release.url)
    model_folder.resolve(YOLO11N, Task.DETECT, StopSignal())
    assert synced[-2:] == [".yolo11n.pt", "models"]
    path = model_folder.resolve(
        ModelObject(ref=upload(store, tmp_path, "best.pt", weights())), Task.DETECT, StopSignal()
    )
    assert synced[-2:] == [f".{path.name}", ".runs"]


def test_redirect_is_followed(folder, release):
    release.answers = [(302, b"")]
    path = folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert path.read_bytes() == release.body


def test_parallel_requests_for_one_model_download_it_once(models, store, release):
    def resolve(_: int) -> Path:
        own = ModelFolder(
            models, store=store, artifacts_bucket=BUCKET, run_of={}.get, allow_download=True, release_url=release.url, known_digests={},
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


def test_download_with_wrong_checksum_is_retried_and_removed(folder, models, release):
    broken = bytearray(weights())
    broken[1000] ^= 1
    release.body = bytes(broken)
    with pytest.raises(Unavailable, match=r"yolo11n\.pt is damaged"):
        folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert len(release.paths) == QUICK.tries
    assert files_in(models) == []


def test_missing_release_file_is_an_error_without_retry(folder, models, release):
    release.answers = [(404, b"not found")]
    with pytest.raises(
        ObjectMissing, match=r"yolo11n\.pt cannot be downloaded: the server answers 404; copy .*MODELS_DIR"
    ):
        folder(allow_download=True, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert len(release.paths) == 1
    assert files_in(models) == []


def test_connection_error_names_models_dir(folder, models, release):
    closed = f"http://127.0.0.1:{free_port()}/x"
    with pytest.raises(Unavailable) as refused:
        folder(allow_download=True, release_url=closed).resolve(YOLO11N, Task.POSE, StopSignal())
    assert str(refused.value) == (
        "base_model: yolo11n-pose.pt is not on this worker, and there is no connection to 127.0.0.1; "
        f"copy yolo11n-pose.pt to MODELS_DIR ({models}), or train from scratch with yolo11n-pose.yaml"
    )
    assert files_in(models) == []


def test_disabled_download_sends_no_request(folder, models, release):
    with pytest.raises(
        BadRequest, match=r"yolo11n.pt is not on this worker; copy it to MODELS_DIR .*ALLOW_WEIGHTS_DOWNLOAD=1"
    ):
        folder(allow_download=False, release_url=release.url).resolve(YOLO11N, Task.DETECT, StopSignal())
    assert release.paths == []


@pytest.mark.timeout(20)
def test_named_pipe_in_models_dir_counts_as_missing_weights(folder, models):
    models.mkdir()
    os.mkfifo(models / "yolo11n.pt")
    with pytest.raises(BadRequest, match=r"yolo11n\.pt is not on this worker"):
        folder().resolve(YOLO11N, Task.DETECT, StopSignal())


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
    assert files_in(models) == []


def test_stop_ends_wait_for_other_download(folder, release):
    release.slow = True
    model_folder, stop = folder(allow_download=True, release_url=release.url), StopSignal()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(model_folder.resolve, YOLO11N, Task.DETECT, StopSignal())
        while not release.paths:
            time.sleep(0.01)
        stop.set(StopReason.CANCELED)
        with pytest.raises(Stopped):
            model_folder.resolve(YOLO11N, Task.DETECT, stop)
        release.slow = False
        release.trickle.set()
        assert other.exception() is None or isinstance(other.exception(), Unavailable)


def test_model_without_weights_for_task_is_rejected_before_download(folder, release):
    with pytest.raises(BadRequest, match="only for detect"):
        folder(allow_download=True, release_url=release.url).resolve(
            OfficialModel(stem="yolov10n"), Task.OBB, StopSignal()
        )
    assert release.paths == []


def free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return server.server_port
