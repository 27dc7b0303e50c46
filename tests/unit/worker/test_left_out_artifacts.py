"""A finished model is published without the files that the store rejects."""

import os
import time

import pytest

from tests.unit.worker.upload_harness import JOB, Watched, finished_with, published
from trainer.core.errors import BadRequest, MachineFailed, Misconfigured, Unavailable
from trainer.core.events import Warned
from trainer.storage.keys import escaped_key
from trainer.worker import artifact_upload
from trainer.worker.artifact_upload import ArtifactUpload


def left_out(events):
    return [event.message for event in events if isinstance(event, Warned) and event.code == "artifact_left_out"]


@pytest.mark.parametrize("name", ["results.csv", "run.log", "manifest.json"])
def test_model_is_published_without_file_that_store_rejects_for_too_long(store, run_dir, monkeypatch, name):
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
    ("name", "error", "is_finished"),
    [
        ("best.pt", BadRequest("too large"), True),
        ("results.csv", Unavailable("down"), True),
        ("results.csv", MachineFailed("the disk is full"), True),
        ("results.csv", BadRequest("too large"), False),
    ],
)
def test_upload_fails_for_rejected_weights_or_temporary_error_or_unfinished_training(
    store, run_dir, monkeypatch, name, error, is_finished
):
    monkeypatch.setattr(artifact_upload, "LEFT_OUT_AFTER", 0.0)
    watched = Watched(store)

    def refuse(uploaded):
        if uploaded == name:
            raise error

    watched.refuse = refuse
    with pytest.raises(type(error)):
        published(watched, run_dir, finished=finished_with(run_dir) if is_finished else None)


def test_file_is_not_left_out_if_store_accepts_it_later(store, run_dir, monkeypatch):
    """The store rejects every file at first. A file that is uploaded later is not reported as left out."""
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
def test_file_with_too_long_name_is_left_out(store, run_dir, monkeypatch, name):
    monkeypatch.setattr(store, "key", escaped_key)
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (run_dir / name).write_text("x")
    events = []

    names = {artifact.name for artifact in published(store, run_dir, events, finished=finished_with(run_dir))}

    assert "best.pt" in names
    [message] = left_out(events)
    assert message.startswith(name[:300])
    assert " is not published and stays on this host: its name has more than 900 bytes, or" in message


def test_file_with_name_that_is_not_utf8_is_published(store, run_dir):
    name = os.fsdecode(b"bad\xff.png")
    (run_dir / name).write_text("x")

    artifacts = {artifact.name: artifact for artifact in published(store, run_dir, finished=finished_with(run_dir))}

    assert "best.pt" in artifacts
    assert artifacts[name].path.endswith("/bad=FF.png"), "the key of an object must be valid text in the row"


def test_huge_file_is_left_out_without_reading_it(store, run_dir):
    (run_dir / "core.123").touch()
    os.truncate(run_dir / "core.123", 2**40)
    events = []

    names = {artifact.name for artifact in published(store, run_dir, events, finished=finished_with(run_dir))}

    assert "best.pt" in names
    assert "core.123" not in names
    assert len(left_out(events)) == 1
    assert "larger than the maximum of 16 GiB" in left_out(events)[0]


def test_folder_named_like_model_does_not_replace_model(store, run_dir):
    """The local store cannot have a file and a folder with the same name."""
    (run_dir / "best.pt" / "data").mkdir(parents=True)
    (run_dir / "best.pt" / "data" / "0").write_text("x")

    names = {artifact.name for artifact in published(store, run_dir, finished=finished_with(run_dir))}

    assert "best.pt" in names
    assert "best.pt/data/0" not in names


def test_number_of_warnings_is_limited_if_each_file_has_its_own_reason(store, run_dir, monkeypatch):
    monkeypatch.setattr(artifact_upload, "LEFT_OUT_AFTER", 0.0)
    events, watched, finished = [], Watched(store), finished_with(run_dir)
    for number in range(60):
        (run_dir / f"{number}.odd").touch()
    uploader = ArtifactUpload(watched, "b", JOB)

    def refuse(name):
        if name.endswith(".odd"):
            raise BadRequest(f"storage rejects {name}")

    watched.refuse = refuse
    artifacts = published(watched, run_dir, events, uploader=uploader, finished=finished)

    assert "best.pt" in {artifact.name for artifact in artifacts}
    assert len(left_out(events)) == 21
    assert left_out(events)[-1].startswith("40 more files are not published")
