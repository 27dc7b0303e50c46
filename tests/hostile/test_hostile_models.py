"""A model chosen by an enemy: a clear refusal, in bounded time and memory, nothing opened, asked for or written outside."""

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

from trainer.core.base_model import read_model
from trainer.core.dataset import ObjectRef, Task
from trainer.core.errors import BadRequest, ObjectMissing
from trainer.core.job import RunRequest
from trainer.core.plan import Architecture, ModelFile, ModelObject, ModelOfRun, OfficialModel, TrainPlan
from trainer.core.stop import StopSignal
from trainer.storage.local import LocalObjectStore
from trainer.training.weights import ModelFolder

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
    """MODELS_DIR with an operator's model, links out of it, and a secret beside it that must stay what it is."""
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
    # somewhere else
    "https://example.org/yolo11n.pt", "HTTP://169.254.169.254/latest/meta-data.pt", "http://localhost:8000/model",
    "grpc://triton:8001/yolo", "rtsp://camera/1", "rtmp://x/y.pt", "tcp://10.0.0.1:1/x.pt", "ul://account/models/1",
    "gs://bucket/best.pt", "s3://bucket/best.pt", "file:///etc/passwd", "ftp://x/y.pt", "hf:ultralytics/x.pt", "git+ssh://x/y.pt",
    "data:application/zip;base64,UEs=", "javascript:alert(1)", "c:\\models\\best.pt", "https:example.org/x.pt",
    # somewhere else on this host
    "/etc/passwd", "/etc/passwd.pt", "~/best.pt", "~root/x.pt", "../secret.pt", "team/../../secret.pt", "./team/good.pt",
    "team//good.pt", "..", ".", "/", "team\\..\\..\\secret.pt", ".runs/x.pt", ".locks/x.pt", "team/.hidden.pt", "$HOME/x.pt.sh",
    "..\\secret.pt", "%2e%2e/secret.pt.zip", "//server/share.pt", "team/..", "\\\\server\\share\\x.pt",
    # not a name
    "yolo11n.pt\0.txt", "yolo11n\n.pt", "yolo11n.pt\r\nX: y", "\x1b[2Jyolo11n", "-rf.pt", "--weights=x.pt", "\u202etp.n11oloy",
    "a" * 100_000, "a/" * 5000 + "x.pt", "x" * 300 + ".pt", "\ud800.pt",
    # code, other formats, packages
    "yolo11n.pkl", "yolo11n.py", "os.system", "ultralytics.YOLO", "torchvision.models.resnet18", "hub/x.torchscript", "x.onnx",
    "x.engine", "x.safetensors", "resnet50.pth", "x.pt.tar", "x.pt/", "__import__('os').system('id')", "{{7*7}}", "$(id).yaml",
    "`id`", "yolo11n; rm -rf /", "yolo11n && id", "!!python/object/apply:os.system [id]", "../yolo11n.yaml", "/tmp/yolo11n.yaml",
    "mine.yaml", "yolo11n.yaml.pt.yaml", "https://example.org/yolo11n.yaml", "yolo11n.pt?x=1.zip",
    # objects that are not ours
    "storage:", "storage:/", "storage:../x.pt", "storage:a/../../x.pt", "storage:a/.b.pt", "storage:x.exe", "storage:https://x/y.exe",
    "storage:other-bucket/../x.pt", "storage:a//b.pt", "storage:" + "a" * 1000 + ".pt", "storage:x.pt\0",
    # almost a run
    "0b6f3c1e-2f7a-4c1d-9a54", "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a1g", RUN + "/../..", "' or 1=1 --", "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a1\u0661",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[f"{number}" for number in range(len(NAMES))])
def test_a_name_that_is_none_is_refused_before_anything_is_looked_for(name):
    with pytest.raises(BadRequest) as refused:
        read_model(name, BUCKET)

    message = str(refused.value)
    assert message.startswith("base_model = ")
    assert len(message) < 700
    assert message.isprintable()


@pytest.mark.parametrize("value", [[], {}, ["yolo11n"], {"model": "/etc/passwd"}, 0, 1.5, True, "x" * 2_000_000], ids=lambda v: str(v)[:20])
def test_a_configuration_names_no_other_model_by_another_way(value):
    """Whatever Ultralytics would load: the base model is the row's, and everything else is refused or left out."""
    for key in ("model", "pretrained", "resume", "distill_model", "cfg", "weights", "base_model"):
        request = RunRequest(data_yaml="/data/data.yaml", base_model="yolo11n", configuration={key: value})
        with contextlib.suppress(BadRequest):
            plan = TrainPlan.parse(request)
            assert plan.model in (OfficialModel(stem="yolo11n"), Architecture(stem="yolo11n"))  # without its weights
            assert plan.args.get(key) in (None, True, False)


LEADING_OUT = ["link.pt", "up/secret.pt", "system/passwd.pt", "null.pt", "../secret.pt", "team/../../secret.pt", "/etc/passwd.pt"]
NO_FILE = ["loop.pt", "gone.pt", "folder.pt", "pipe.pt", "nothing.pt", "team/good.pt/x.pt", "x" * 250 + ".pt", "x" * 400 + ".pt"]


@pytest.mark.parametrize(("name", "why"), [*((n, "leads out") for n in LEADING_OUT), *((n, "no such file|leads out") for n in NO_FILE)])
def test_what_is_no_file_of_the_folder_is_refused(folder, name, why):
    """Also what a name that was written down long ago leads to now."""
    with pytest.raises(BadRequest, match=why):
        folder.resolve(ModelFile(name=name), Task.DETECT, StopSignal())


def deflated(members, **how):
    return stored(members, zipfile.ZIP_DEFLATED, **how)


def overlapping():
    """One stored megabyte that a thousand entries of the directory all name."""
    plain = stored([("best/data.pkl", b"\0" * 2**20)])
    end = plain.rindex(b"PK\x05\x06")
    begin = struct.unpack("<I", plain[end + 16 : end + 20])[0]
    entries = plain[begin:end] * 1000
    return plain[:begin] + entries + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1000, 1000, len(entries), begin, 0)


def boasting():
    """Its directory claims an exabyte."""
    plain = bytearray(stored())
    entry = plain.rindex(b"PK\x01\x02")
    plain[entry + 20 : entry + 28] = b"\xfe\xff\xff\xff" * 2
    return bytes(plain)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


FILES = {
    "nothing": b"",
    "a bare pickle that runs code": pickle.dumps(Hostile()),
    "a pickle of before zip archives": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "a program": b"\x7fELF" + b"\0" * 500,
    "a page": b"<html>404</html>",
    "a tar": b"best.pt".ljust(257, b"\0") + b"ustar" + b"\0" * 250,
    "half of a model": stored()[:-40],
    "the end of a model": stored()[-40:],
    "a directory that is cut": stored()[:-80] + stored()[-22:],
    "a bomb": deflated([("best/data.pkl", b"\0" * 2**24)]),
    "a bomb among much": deflated([(f"best/data/{n}", b"\0" * 2**16) for n in range(200)]),
    "a packed storage": deflated([("best/data.pkl", b"w" * 500)]),
    "bzip2": stored([("best/data.pkl", b"w" * 5000)], zipfile.ZIP_BZIP2),
    "lzma": stored([("best/data.pkl", b"w" * 5000)], zipfile.ZIP_LZMA),
    "members upon each other": overlapping(),
    "a size that is a lie": boasting(),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_that_is_no_model_or_more_than_it_seems_is_refused_unopened(folder, place, content, monkeypatch):
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
    ref = ObjectRef(bucket=BUCKET, key="runs/best.pt")
    folder._store.upload(path, ref, StopSignal())
    return ModelObject(ref=ref)


@pytest.mark.parametrize(
    "row",
    [
        None, {}, {"status": "running"}, {"status": "completed"}, {"status": "completed", "results": "x"},
        {"status": "completed", "results": {"artifacts": {"name": "best.pt"}}},
        {"status": "completed", "results": {"artifacts": [None, 1, "best.pt", {"name": "best.pt", "path": None}]}},
        {"status": "completed", "results": {"artifacts": [{"name": "best.pt", "path": "../../secret.pt"}]}},
        {"status": "completed", "results": {"artifacts": [{"name": "best.pt", "path": "/etc/passwd"}]}},
        {"status": "completed", "results": {"artifacts": [{"name": "best.pt", "path": "x.pt", "sha256": "../../x"}]}},
    ],
    ids=range(10),
)  # fmt: skip
def test_a_runs_row_leads_nowhere_else(place, row):
    """Whoever can write a row could write its results, too."""
    folder = ModelFolder(
        place / "models", store=LocalObjectStore(place / "store"), artifacts_bucket=BUCKET, run_of=lambda _: row, allow_download=False,
    )  # fmt: skip

    with pytest.raises((BadRequest, ObjectMissing)):
        folder.resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal())


def test_the_operators_own_model_is_found(folder, place):
    assert folder.resolve(read_model("team/good.pt", BUCKET), Task.DETECT, StopSignal()) == place / "models" / "team" / "good.pt"
