"""Which files of a run are uploaded, and under which keys."""

import json
import os
import time

import pytest

from tests.unit.worker.harness import described
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, MachineFailed, Misconfigured, Unavailable
from trainer.core.events import Finished, TransferProgress, Warned
from trainer.core.job import Job, RunRequest
from trainer.core.run_folder import RunFolder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.storage.keys import escaped_key
from trainer.storage.local import LocalObjectStore
from trainer.worker import artifact_upload
from trainer.worker.artifact_upload import ArtifactUpload, WeightsChanged, artifact_name, published_files

JOB = Job(id="r", request=RunRequest(data_yaml="x"), attempt=2)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "train_r"
    for name, content in {
        "weights/best.pt": "best",
        "weights/last.pt": "last",
        "results.csv": "epoch",
        "labels.jpg": "picture",
        "run.log": "log",
        "best_openvino_model/best.xml": "<net/>",
        "checkpoints/epoch-00001.pt": "state",
        ".finished.json": "{}",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.fixture
def store(tmp_path):
    return LocalObjectStore(tmp_path / "storage")


def published(store, run_dir, events=None, stop=None, uploader=None, finished=None):
    events = [] if events is None else events
    uploader = uploader or ArtifactUpload(store, "b", JOB)
    return uploader.upload(RunFolder(run_dir), run_dir / "run.log", stop or StopSignal(), events.append, finished)


class Watched:
    """A store that records the names of uploaded files; `refuse` may raise for one of them."""

    def __init__(self, store):
        self.store = store
        self.uploaded = []
        self.refuse = lambda name: None

    def __getattr__(self, name):
        return getattr(self.store, name)

    def upload(self, path, ref, stop, **more):
        self.refuse(path.name)
        self.uploaded.append(path.name)
        return self.store.upload(path, ref, stop, **more)


def finished_with(run_dir):
    best, last = (described(run_dir / "weights" / name) for name in ("best.pt", "last.pt"))
    return Finished(best=best, last=last, report={})


def test_checkpoints_and_hidden_files_are_not_published(run_dir):
    names = {artifact_name(path, run_dir) for path in published_files(run_dir)}

    assert names == {"best.pt", "last.pt", "results.csv", "labels.jpg", "best_openvino_model/best.xml"}


def test_links_pipes_and_deeply_nested_folders_are_not_published(run_dir, tmp_path):
    (tmp_path / "secret").write_text("not of this run")
    (run_dir / "link").symlink_to(tmp_path / "secret")
    (run_dir / "folder").symlink_to(tmp_path)
    (run_dir / "itself").symlink_to(run_dir)
    os.mkfifo(run_dir / "pipe")
    below = run_dir / "weights"
    for _ in range(300):
        below = below / "d"
        below.mkdir()
    (below / "deep.pt").write_text("x")

    names = {artifact_name(path, run_dir) for path in published_files(run_dir)}

    assert names == {"best.pt", "last.pt", "results.csv", "labels.jpg", "best_openvino_model/best.xml"}


def test_all_keys_have_prefix_of_attempt(store, run_dir):
    artifacts = published(store, run_dir)

    assert all(artifact.path.startswith("training_runs/r/2/") for artifact in artifacts)
    assert [artifact.name for artifact in artifacts[-2:]] == ["run.log", "manifest.json"]


def test_artifact_keeps_name_when_key_is_escaped(store, run_dir, monkeypatch):
    monkeypatch.setattr(store, "key", escaped_key)
    (run_dir / "Straße 100%.png").write_text("x")

    [odd] = [artifact for artifact in published(store, run_dir) if artifact.name.startswith("Str")]

    assert odd.name == "Straße 100%.png"
    assert odd.path.isascii()
    assert "%" not in odd.path
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert {"name": odd.name, "path": odd.path} in [
        {"name": entry["name"], "path": entry["path"]} for entry in manifest["artifacts"]
    ]


def test_publishing_twice_is_idempotent(store, run_dir):
    first = published(store, run_dir)
    second = published(store, run_dir)

    assert [a for a in first if a.name != "manifest.json"] == [a for a in second if a.name != "manifest.json"]
    assert store.stat(ObjectRef(bucket="b", key="training_runs/r/2/best.pt")).bytes == 4


def test_progress_is_reported_for_each_file(store, run_dir):
    events = []

    published(store, run_dir, events)

    assert all(isinstance(event, TransferProgress) for event in events)
    assert events[-1].files == events[-1].total_files
    assert events[-1].bytes == events[-1].total_bytes


def test_stop_ends_upload_before_next_file(store, run_dir):
    stop = StopSignal()
    stop.set(StopReason.LOST)

    with pytest.raises(Stopped):
        published(store, run_dir, stop=stop)

    assert not (run_dir.parent / "storage").exists()


def test_uploaded_file_is_not_sent_again_after_failure_of_another(store, run_dir):
    watched = Watched(store)
    uploader = ArtifactUpload(watched, "b", JOB)

    def refuse(name):
        if name == "results.csv":
            raise BadRequest("no such type")

    watched.refuse = refuse
    for _ in range(2):
        with pytest.raises(BadRequest):
            published(watched, run_dir, uploader=uploader)
    watched.refuse = lambda name: None

    artifacts = published(watched, run_dir, uploader=uploader)

    assert watched.uploaded.count("best.pt") == watched.uploaded.count("labels.jpg") == 1
    assert {"best.pt", "results.csv", "run.log", "manifest.json"} <= {artifact.name for artifact in artifacts}


def test_changed_file_is_sent_again(store, run_dir):
    watched = Watched(store)
    uploader = ArtifactUpload(watched, "b", JOB)
    published(watched, run_dir, uploader=uploader)
    (run_dir / "results.csv").write_text("epoch\n1\n")

    published(watched, run_dir, uploader=uploader)

    assert watched.uploaded.count("results.csv") == 2
    assert watched.uploaded.count("best.pt") == 1


def test_object_lost_by_bucket_is_sent_again(store, run_dir):
    """The bucket was deleted and recreated during the upload."""
    watched = Watched(store)
    uploader = ArtifactUpload(watched, "b", JOB)

    def lose(name):
        if name == "manifest.json" and watched.uploaded.count("best.pt") == 1:
            store.delete(ObjectRef(bucket="b", key="training_runs/r/2/best.pt"))

    watched.refuse = lose
    with pytest.raises(Unavailable, match=r"does not have best\.pt"):
        published(watched, run_dir, uploader=uploader)

    published(watched, run_dir, uploader=uploader)

    assert watched.uploaded.count("best.pt") == 2
    assert watched.uploaded.count("last.pt") == 1
    assert store.stat(ObjectRef(bucket="b", key="training_runs/r/2/best.pt")).bytes == 4


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a link": lambda path: (path.rename(path.with_name("other.pt")), path.symlink_to(path.with_name("other.pt"))),
}


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_with_other_checksum_are_not_published(store, run_dir, name, damage):
    finished, watched = finished_with(run_dir), Watched(store)
    DAMAGES[damage](run_dir / "weights" / name)

    with pytest.raises(WeightsChanged, match=name):
        published(watched, run_dir, finished=finished)

    assert name not in watched.uploaded


def test_weights_that_change_during_upload_are_rejected(store, run_dir):
    finished, watched = finished_with(run_dir), Watched(store)
    watched.refuse = lambda name: (run_dir / "weights" / "best.pt").write_text("worse") if name == "best.pt" else None

    with pytest.raises(MachineFailed, match="changed"):
        published(watched, run_dir, finished=finished)


def test_other_file_cannot_take_name_of_weights(store, run_dir):
    finished = finished_with(run_dir)
    (run_dir / "best.pt").write_text("another")

    published(store, run_dir, finished=finished)

    assert store.stat(ObjectRef(bucket="b", key="training_runs/r/2/best.pt")).bytes == 4


def test_file_that_changes_during_upload_is_not_published(store, run_dir):
    """The checksum in the manifest must be that of the bytes in the bucket."""
    watched = Watched(store)
    uploader = ArtifactUpload(watched, "b", JOB)

    def change(name):
        if name == "results.csv" and name not in watched.uploaded:
            (run_dir / name).write_text("epoch\n1\n2\n")

    watched.refuse = change
    with pytest.raises(MachineFailed, match="changed during its upload"):
        published(watched, run_dir, uploader=uploader)

    artifacts = {artifact.name: artifact for artifact in published(watched, run_dir, uploader=uploader)}
    assert artifacts["results.csv"].bytes == len("epoch\n1\n2\n")
    assert watched.uploaded.count("results.csv") == 2


# ── a model does not wait for what lies beside it ──


def left_out(events):
    return [event.message for event in events if isinstance(event, Warned) and event.code == "artifact_left_out"]


@pytest.mark.parametrize("name", ["results.csv", "run.log", "manifest.json"])
def test_model_is_published_without_a_file_that_is_refused_for_long(store, run_dir, monkeypatch, name):
    monkeypatch.setattr(artifact_upload, "LEFT_OUT_AFTER", 0.2)
    watched, events, finished = Watched(store), [], finished_with(run_dir)
    uploader = ArtifactUpload(watched, "b", JOB)

    def refuse(uploaded):
        if name in uploaded:
            raise BadRequest("too large")

    watched.refuse = refuse
    with pytest.raises(BadRequest):
        published(watched, run_dir, events, uploader=uploader, finished=finished)
    time.sleep(0.2)

    artifacts = published(watched, run_dir, events, uploader=uploader, finished=finished)

    assert {artifact.name for artifact in artifacts} == {
        "best.pt", "last.pt", "results.csv", "labels.jpg", "best_openvino_model/best.xml", "run.log", "manifest.json",
    } - {name}  # fmt: skip
    assert left_out(events) == [f"{name} is not published and stays on this host: too large"]


@pytest.mark.parametrize(
    ("name", "error", "has_ended"),
    [
        ("best.pt", BadRequest("too large"), True),
        ("results.csv", Unavailable("down"), True),
        ("results.csv", MachineFailed("the disk is full"), True),
        ("results.csv", BadRequest("too large"), False),
    ],
)
def test_weights_and_what_may_be_taken_later_are_waited_for(store, run_dir, monkeypatch, name, error, has_ended):
    monkeypatch.setattr(artifact_upload, "LEFT_OUT_AFTER", 0.0)
    watched = Watched(store)

    def refuse(uploaded):
        if uploaded == name:
            raise error

    watched.refuse = refuse
    with pytest.raises(type(error)):
        published(watched, run_dir, finished=finished_with(run_dir) if has_ended else None)


def test_file_that_the_store_takes_in_the_end_is_not_left_out(store, run_dir, monkeypatch):
    """The store refused everything for a while, and nothing is said about what it has now."""
    monkeypatch.setattr(artifact_upload, "LEFT_OUT_AFTER", 0.0)
    events, finished = [], finished_with(run_dir)
    watched = Watched(store)
    uploader = ArtifactUpload(watched, "b", JOB)

    def refuse(_):
        raise Misconfigured("the key is wrong")

    watched.refuse = refuse
    with pytest.raises(Misconfigured):
        published(watched, run_dir, events, uploader=uploader, finished=finished)
    watched.refuse = lambda name: None

    artifacts = published(watched, run_dir, events, uploader=uploader, finished=finished)

    assert {"best.pt", "results.csv", "run.log", "manifest.json"} <= {artifact.name for artifact in artifacts}
    assert left_out(events) == []


@pytest.mark.parametrize("name", ["é" * 127, "/".join(["d" * 200] * 5)])
def test_file_whose_name_no_store_takes_is_left_out(store, run_dir, monkeypatch, name):
    monkeypatch.setattr(store, "key", escaped_key)
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (run_dir / name).write_text("x")
    events = []

    names = {artifact.name for artifact in published(store, run_dir, events, finished=finished_with(run_dir))}

    assert "best.pt" in names
    assert left_out(events) == [f"{name} is not published and stays on this host: its name is too long"]


def test_huge_file_beside_a_model_is_left_out_unread(store, run_dir):
    (run_dir / "core.123").touch()
    os.truncate(run_dir / "core.123", 2**40)
    events = []

    names = {artifact.name for artifact in published(store, run_dir, events, finished=finished_with(run_dir))}

    assert "best.pt" in names
    assert "core.123" not in names
    assert len(left_out(events)) == 1
    assert "1024 GiB" in left_out(events)[0]


def test_folder_with_the_name_of_the_model_does_not_take_its_place(store, run_dir):
    """The local store cannot have both a file and a folder of one name."""
    (run_dir / "best.pt" / "data").mkdir(parents=True)
    (run_dir / "best.pt" / "data" / "0").write_text("x")

    names = {artifact.name for artifact in published(store, run_dir, finished=finished_with(run_dir))}

    assert "best.pt" in names
    assert "best.pt/data/0" not in names
