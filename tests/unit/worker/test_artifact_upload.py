"""The uploaded files of a run, and their keys."""

import json
import os

import pytest

from tests.unit.worker.upload_harness import JOB, Watched, finished_with, published
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, MachineFailed, Unavailable
from trainer.core.events import TransferProgress
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.disk.untrusted_folder import UntrustedFolder
from trainer.storage.keys import escaped_key
from trainer.worker.artifact_selection import select
from trainer.worker.artifact_upload import ArtifactUpload, WeightsChanged


def selected(run_dir, store):
    with UntrustedFolder(run_dir) as output:
        return select(output, store).files.keys()


def test_checkpoints_and_hidden_files_are_not_published(store, run_dir):
    names = selected(run_dir, store)

    assert names == {"best.pt", "last.pt", "results.csv", "labels.jpg", "best_openvino_model/best.xml"}


def test_links_pipes_and_deeply_nested_folders_are_not_published(store, run_dir, tmp_path):
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

    names = selected(run_dir, store)

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
    manifest = json.loads((run_dir.parent / "manifest.json").read_text())
    assert {"name": odd.name, "path": odd.path} in [
        {"name": entry["name"], "path": entry["path"]} for entry in manifest["artifacts"]
    ]


def test_publishing_is_idempotent(store, run_dir):
    first = published(store, run_dir)
    second = published(store, run_dir)

    assert [a for a in first if a.name != "manifest.json"] == [a for a in second if a.name != "manifest.json"]
    assert store.stat(ObjectRef(bucket="b", key="training_runs/r/2/best.pt")).bytes == 4


def test_last_progress_event_counts_all_files_and_bytes(store, run_dir):
    events = []

    published(store, run_dir, events)

    assert all(isinstance(event, TransferProgress) for event in events)
    assert events[-1].files == events[-1].total_files
    assert events[-1].bytes == events[-1].total_bytes


def test_no_file_is_uploaded_after_lost_lease(store, run_dir):
    stop = StopSignal()
    stop.set(StopReason.LOST)

    with pytest.raises(Stopped):
        published(store, run_dir, stop=stop)

    assert not (run_dir.parents[1] / "storage").exists()


def test_uploaded_file_is_not_sent_again_after_failure_of_another_file(store, run_dir):
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


def test_object_missing_in_bucket_is_sent_again(store, run_dir):
    """Example: the bucket is deleted and recreated during the upload."""
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
def test_missing_or_changed_weights_are_not_published(store, run_dir, name, damage):
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


def test_file_with_name_of_weights_does_not_replace_weights(store, run_dir):
    finished = finished_with(run_dir)
    (run_dir / "best.pt").write_text("another")

    published(store, run_dir, finished=finished)

    assert store.stat(ObjectRef(bucket="b", key="training_runs/r/2/best.pt")).bytes == 4


def test_file_that_changes_during_upload_is_not_published(store, run_dir):
    """The manifest must contain the checksum of the bytes in the bucket."""
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
