"""What is kept of a run, and under which keys."""

import json
import os

import pytest

from trainer.core.dataset import ObjectRef
from trainer.core.events import TransferProgress
from trainer.core.job import Job, RunRequest
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.storage.local import LocalObjectStore
from trainer.worker.publish import Publisher, artifact_name, kept_files

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


def published(store, run_dir, events=None, stop=None):
    events = [] if events is None else events
    return Publisher(store, "b").publish(JOB, run_dir, run_dir / "run.log", stop or StopSignal(), events.append)


def test_checkpoints_and_hidden_files_stay_here(run_dir):
    names = {artifact_name(path, run_dir) for path in kept_files(run_dir)}

    assert names == {"best.pt", "last.pt", "results.csv", "labels.jpg", "best_openvino_model/best.xml"}


def test_links_pipes_and_folders_nested_without_end_are_not_published(run_dir, tmp_path):
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

    names = {artifact_name(path, run_dir) for path in kept_files(run_dir)}

    assert names == {"best.pt", "last.pt", "results.csv", "labels.jpg", "best_openvino_model/best.xml"}


def test_everything_lies_below_the_attempts_own_prefix(store, run_dir):
    artifacts = published(store, run_dir)

    assert all(artifact.path.startswith("training_runs/r/2/") for artifact in artifacts)
    assert [artifact.name for artifact in artifacts[-2:]] == ["run.log", "manifest.json"]


def test_a_name_that_storage_refuses_is_kept_beside_the_key_that_it_got(store, run_dir):
    (run_dir / "Straße 100%.png").write_text("x")

    [odd] = [artifact for artifact in published(store, run_dir) if artifact.name.startswith("Str")]

    assert odd.name == "Straße 100%.png"
    assert odd.path.isascii()
    assert "%" not in odd.path
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert {"name": odd.name, "path": odd.path} in [
        {"name": entry["name"], "path": entry["path"]} for entry in manifest["artifacts"]
    ]


def test_publishing_again_replaces_with_the_same(store, run_dir):
    first = published(store, run_dir)
    second = published(store, run_dir)

    assert [a for a in first if a.name != "manifest.json"] == [a for a in second if a.name != "manifest.json"]
    assert store.stat(ObjectRef(bucket="b", key="training_runs/r/2/best.pt")).bytes == 4


def test_progress_is_told_file_by_file(store, run_dir):
    events = []

    published(store, run_dir, events)

    assert all(isinstance(event, TransferProgress) for event in events)
    assert events[-1].files == events[-1].total_files
    assert events[-1].bytes == events[-1].total_bytes


def test_a_stop_ends_it_before_the_next_file(store, run_dir):
    stop = StopSignal()
    stop.set(StopReason.LOST)

    with pytest.raises(Stopped):
        published(store, run_dir, stop=stop)

    assert not (run_dir.parent / "storage").exists()
