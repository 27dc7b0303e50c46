"""Hostile models are rejected in bounded time and memory. No file outside MODELS_DIR is opened or written."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import pytest

from trainer.core.dataset import ObjectRef, Task
from trainer.core.errors import BadRequest, ObjectMissing
from trainer.core.job import RunRequest
from trainer.core.model import Architecture, ModelFile, ModelObject, ModelOfRun, OfficialModel
from trainer.core.run_row import RunRow
from trainer.core.stop import StopSignal
from trainer.request.model_reference import read_model
from trainer.request.parse import plan_of
from trainer.storage.local import LocalObjectStore
from trainer.weights.model_folder import ModelFolder

BUCKET = "training-artifacts"
RUN = "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a11"
SECRET = "the operator's own weights"


def stored(members=(("best/data.pkl", b"w" * 500),), packing=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _bounded():
    tracemalloc.start()
    began = time.monotonic()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - began < 20
    assert peak < 64 * 2**20


@pytest.fixture
def place(tmp_path):
    """Yield a folder with a secret file and MODELS_DIR. MODELS_DIR contains a model and hostile symlinks."""
    models = tmp_path / "models"
    (models / "team").mkdir(parents=True)
    (models / "team" / "good.pt").write_bytes(stored())
    (tmp_path / "secret.pt").write_text(SECRET)
    (models / "link.pt").symlink_to(tmp_path / "secret.pt")
    (models / "up").symlink_to(tmp_path)
    (models / "system").symlink_to("/etc")
    (models / "loop.pt").symlink_to("loop.pt")
    (models / "gone.pt").symlink_to(models / "nothing.pt")
    (models / "folder.pt").mkdir()
    os.mkfifo(models / "pipe.pt")
    (models / "null.pt").symlink_to("/dev/zero")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    yield tmp_path
    after = [str(path) for path in tmp_path.rglob("*") if not {".locks", ".runs", "store"} & set(path.parts)]
    assert sorted(after) == before
    assert (tmp_path / "secret.pt").read_text() == SECRET


@pytest.fixture
def folder(place):
    return ModelFolder(
        place / "models",
        store=LocalObjectStore(place / "store"),
        artifacts_bucket=BUCKET,
        run_of=lambda _: None,
        allow_download=False,
    )


NAMES = [
    # other hosts
    "https://example.org/yolo11n.pt", "HTTP://169.254.169.254/latest/meta-data.pt", "http://localhost:8000/model",
    "grpc://triton:8001/yolo", "rtsp://camera/1", "rtmp://x/y.pt", "tcp://10.0.0.1:1/x.pt", "ul://account/models/1",
    "gs://bucket/best.pt", "s3://bucket/best.pt", "file:///etc/passwd", "ftp://x/y.pt", "hf:ultralytics/x.pt", "git+ssh://x/y.pt",
    "data:application/zip;base64,UEs=", "javascript:alert(1)", "c:\\models\\best.pt", "https:example.org/x.pt",
    # other paths on this host
    "/etc/passwd", "/etc/passwd.pt", "~/best.pt", "~root/x.pt", "../secret.pt", "team/../../secret.pt", "./team/good.pt",
    "team//good.pt", "..", ".", "/", "team\\..\\..\\secret.pt", ".runs/x.pt", ".locks/x.pt", "team/.hidden.pt", "$HOME/x.pt.sh",
    "..\\secret.pt", "%2e%2e/secret.pt.zip", "//server/share.pt", "team/..", "\\\\server\\share\\x.pt",
    # invalid names
    "yolo11n.pt\0.txt", "yolo11n\n.pt", "yolo11n.pt\r\nX: y", "\x1b[2Jyolo11n", "-rf.pt", "--weights=x.pt", "\u202etp.n11oloy",
    "a" * 100_000, "a/" * 5000 + "x.pt", "x" * 300 + ".pt", "\ud800.pt",
    # code, other file formats, names of packages
    "yolo11n.pkl", "yolo11n.py", "os.system", "ultralytics.YOLO", "torchvision.models.resnet18", "hub/x.torchscript", "x.onnx",
    "x.engine", "x.safetensors", "resnet50.pth", "x.pt.tar", "x.pt/", "__import__('os').system('id')", "{{7*7}}", "$(id).yaml",
    "`id`", "yolo11n; rm -rf /", "yolo11n && id", "!!python/object/apply:os.system [id]", "../yolo11n.yaml", "/tmp/yolo11n.yaml",
    "mine.yaml", "yolo11n.yaml.pt.yaml", "https://example.org/yolo11n.yaml", "yolo11n.pt?x=1.zip",
    # invalid object keys and objects of other buckets
    "storage:", "storage:/", "storage:../x.pt", "storage:a/../../x.pt", "storage:a/.b.pt", "storage:x.exe", "storage:https://x/y.exe",
    "storage:other-bucket/../x.pt", "storage:a//b.pt", "storage:" + "a" * 1000 + ".pt", "storage:x.pt\0",
    # invalid run ids
    "0b6f3c1e-2f7a-4c1d-9a54", "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a1g", RUN + "/../..", "' or 1=1 --", "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a1\u0661",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[f"{number}" for number in range(len(NAMES))])
def test_invalid_name_is_rejected_before_any_lookup(name):
    with pytest.raises(BadRequest) as refused:
        read_model(name, BUCKET)

    message = str(refused.value)
    assert message.startswith("base_model = ")
    assert len(message) < 700
    assert message.isprintable()


@pytest.mark.parametrize(
    "value", [[], {}, ["yolo11n"], {"model": "/etc/passwd"}, 0, 1.5, True, "x" * 2_000_000], ids=lambda v: str(v)[:20]
)
def test_configuration_cannot_name_another_model(value):
    """A setting whose value Ultralytics would load as a model is rejected or removed."""
    for key in ("model", "pretrained", "resume", "distill_model", "cfg", "weights", "base_model"):
        request = RunRequest(data_yaml="/data/data.yaml", base_model="yolo11n", configuration={key: value})
        with contextlib.suppress(BadRequest):
            plan = plan_of(request)
            assert plan.model in (
                OfficialModel(stem="yolo11n"),
                Architecture(stem="yolo11n"),
            )  # Architecture has no pretrained weights
            assert plan.args.get(key) in (None, True, False)


LEADING_OUT = [
    "link.pt",
    "up/secret.pt",
    "system/passwd.pt",
    "null.pt",
    "../secret.pt",
    "team/../../secret.pt",
    "/etc/passwd.pt",
]
NO_FILE = [
    "loop.pt",
    "gone.pt",
    "folder.pt",
    "pipe.pt",
    "nothing.pt",
    "team/good.pt/x.pt",
    "x" * 250 + ".pt",
    "x" * 400 + ".pt",
]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((n, "is outside of MODELS_DIR") for n in LEADING_OUT),
        *((n, "the file is not in MODELS_DIR|is outside of") for n in NO_FILE),
    ],
)
def test_path_outside_models_folder_or_without_file_is_rejected(folder, name, why):
    """The path is also checked on use, because the file can change after the row was checked."""
    with pytest.raises(BadRequest, match=why):
        folder.resolve(ModelFile(name=name), Task.DETECT, StopSignal())


def deflated(members, **how):
    return stored(members, zipfile.ZIP_DEFLATED, **how)


def overlapping():
    """Return a ZIP file with a thousand entries that refer to the same 1 MiB of data."""
    plain = stored([("best/data.pkl", b"\0" * 2**20)])
    end = plain.rindex(b"PK\x05\x06")
    begin = struct.unpack("<I", plain[end + 16 : end + 20])[0]
    entries = plain[begin:end] * 1000
    return plain[:begin] + entries + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1000, 1000, len(entries), begin, 0)


def with_wrong_size():
    """Return a ZIP file whose central directory declares 4 GiB."""
    plain = bytearray(stored())
    entry = plain.rindex(b"PK\x01\x02")
    plain[entry + 20 : entry + 28] = b"\xfe\xff\xff\xff" * 2
    return bytes(plain)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


FILES = {
    "empty file": b"",
    "pickle that runs code": pickle.dumps(Hostile()),
    "old PyTorch format without ZIP": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "program": b"\x7fELF" + b"\0" * 500,
    "web page": b"<html>404</html>",
    "tar archive": b"best.pt".ljust(257, b"\0") + b"ustar" + b"\0" * 250,
    "truncated model": stored()[:-40],
    "only the end of a model": stored()[-40:],
    "truncated central directory": stored()[:-80] + stored()[-22:],
    "decompression bomb": deflated([("best/data.pkl", b"\0" * 2**24)]),
    "decompression bomb of many members": deflated([(f"best/data/{n}", b"\0" * 2**16) for n in range(200)]),
    "compressed member": deflated([("best/data.pkl", b"w" * 500)]),
    "bzip2 compression": stored([("best/data.pkl", b"w" * 5000)], zipfile.ZIP_BZIP2),
    "LZMA compression": stored([("best/data.pkl", b"w" * 5000)], zipfile.ZIP_LZMA),
    "overlapping members": overlapping(),
    "wrong size in central directory": with_wrong_size(),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_unsafe_weights_file_is_rejected_before_loading(folder, place, content, monkeypatch):
    monkeypatch.chdir(place)
    for name in ("team/good.pt", "link.pt"):
        (place / "models" / "team" / "good.pt").write_bytes(content)
        with pytest.raises(BadRequest):
            folder.resolve(ModelFile(name=name), Task.DETECT, StopSignal())
    with pytest.raises(BadRequest):
        folder.resolve(upload(folder, place, content), Task.DETECT, StopSignal())

    assert not (place / "executed").exists()
    assert not list((place / "models" / ".runs").glob("*.pt"))


def upload(folder, place, content):
    path = place / "store" / "upload"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    ref = ObjectRef(bucket=BUCKET, key="models/best.pt")
    folder.store.upload(path, ref, StopSignal())
    return ModelObject(ref=ref)


@pytest.mark.parametrize(
    "row",
    [
        None, {"status": "queued"}, {"status": "running"}, {"status": "completed"}, {"status": "completed", "results": "x"},
        {"status": "completed", "results": {"artifacts": {"name": "best.pt"}}},
        {"status": "completed", "results": {"artifacts": [None, 1, "best.pt", {"name": "best.pt", "path": None}]}},
        {"status": "completed", "results": {"artifacts": [{"name": "best.pt", "path": "../../secret.pt"}]}},
        {"status": "completed", "results": {"artifacts": [{"name": "best.pt", "path": "/etc/passwd"}]}},
        {"status": "completed", "results": {"artifacts": [{"name": "best.pt", "path": "x.pt", "sha256": "../../x"}]}},
    ],
    ids=range(10),
)  # fmt: skip
def test_results_of_run_cannot_name_a_file_outside_the_prefix_of_the_run(place, row):
    """Every user who can write a row can also write the results of the row."""
    folder = ModelFolder(
        place / "models", store=LocalObjectStore(place / "store"), artifacts_bucket=BUCKET, run_of=lambda _: None if row is None else RunRow(id=RUN, **row), allow_download=False,
    )  # fmt: skip

    with pytest.raises((BadRequest, ObjectMissing)):
        folder.resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal())


def test_model_in_models_folder_is_found(folder, place):
    assert (
        folder.resolve(read_model("team/good.pt", BUCKET), Task.DETECT, StopSignal())
        == place / "models" / "team" / "good.pt"
    )
