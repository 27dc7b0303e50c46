"""Base models from the artifacts bucket and from earlier runs."""

import hashlib
import os
import time

import pytest

from tests.unit.weights.release import BUCKET, files_in, put, upload, weights
from trainer.core.dataset import ObjectRef, Task
from trainer.core.errors import BadRequest, ObjectMissing
from trainer.core.model import ModelObject, ModelOfRun
from trainer.core.run_row import RunRow
from trainer.core.stop import StopSignal

RUN = "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a11"


def completed(artifacts: object, status: str = "completed") -> dict:
    return {RUN: RunRow(id=RUN, status=status, results={"mAP": 0.5, "artifacts": artifacts})}


def test_changed_object_is_fetched_again(folder, store, models, tmp_path):
    model_folder = folder()
    ref = upload(store, tmp_path, "training_runs/x/1/best.pt", weights(b"one"))
    first = model_folder.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    assert first.read_bytes() == weights(b"one")
    assert model_folder.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal()) == first
    upload(store, tmp_path, ref.key, weights(b"another"))
    second = model_folder.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    assert second.read_bytes() == weights(b"another")
    assert first.is_relative_to(models / ".runs")


def test_object_of_other_bucket_or_without_store_is_rejected(folder):
    other = ModelObject(ref=ObjectRef(bucket="datasets", key="evil.pt"))
    with pytest.raises(BadRequest, match="only objects of the artifacts bucket"):
        folder().resolve(other, Task.DETECT, StopSignal())
    own = ModelObject(ref=ObjectRef(bucket=BUCKET, key="best.pt"))
    with pytest.raises(BadRequest, match="only objects of the artifacts bucket"):
        folder(store=None).resolve(own, Task.DETECT, StopSignal())


def test_missing_object_or_invalid_model_is_rejected(folder, store, models, tmp_path):
    with pytest.raises(ObjectMissing):
        folder().resolve(ModelObject(ref=ObjectRef(bucket=BUCKET, key="none.pt")), Task.DETECT, StopSignal())
    ref = upload(store, tmp_path, "bad.pt", b"os.system")
    with pytest.raises(BadRequest, match=r"storage:bad\.pt: the file is not a complete PyTorch file"):
        folder().resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    assert files_in(models) == []


@pytest.mark.parametrize("with_digest", [True, False])
def test_best_model_of_completed_run_is_fetched(folder, store, tmp_path, with_digest):
    ref = upload(store, tmp_path, f"training_runs/{RUN}/1/best.pt", weights(b"best"))
    artifact = {"name": "best.pt", "path": ref.key, "url": "http://ignored"}
    if with_digest:
        artifact["sha256"] = hashlib.sha256(weights(b"best")).hexdigest()
    model_folder = folder(rows=completed([{"name": "last.pt", "path": "no"}, artifact]))
    path = model_folder.resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal())
    assert path.read_bytes() == weights(b"best")
    if with_digest:  # the file name contains the checksum, so the second call needs no store
        store.delete(ref)
        assert model_folder.resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal()) == path


def test_changed_model_of_run_is_rejected(folder, store, models, tmp_path):
    ref = upload(store, tmp_path, "best.pt", weights(b"swapped"))
    rows = completed([{"name": "best.pt", "path": ref.key, "sha256": "0" * 64}])
    with pytest.raises(BadRequest, match="not the file that the run published"):
        folder(rows=rows).resolve(ModelOfRun(run_id=RUN), Task.DETECT, StopSignal())
    assert files_in(models) == []


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({}, "there is no run with this id"),
        (completed([], "failed"), "the status of that run is failed; only a completed run has a model"),
        (completed([], "running"), "the status of that run is running"),
        (completed([]), "published no best.pt"),
        (completed(None), "published no best.pt"),
        (completed("best.pt"), "published no best.pt"),
        (completed(["best.pt", None, {"name": "best.pt"}, {"name": "best.pt", "path": 3}]), "published no best.pt"),
        ({RUN: RunRow(id=RUN, status="completed", results="text")}, "published no best.pt"),
        ({RUN: RunRow(id=RUN, status="completed")}, "published no best.pt"),
    ],
)
def test_run_without_model_is_rejected_with_reason(folder, rows, reason):
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


@pytest.mark.parametrize("damaged", [b"", weights()[:2000], b"\0" * 5000], ids=["empty", "truncated", "zeros"])
def test_damaged_model_of_run_is_fetched_again(folder, store, tmp_path, damaged):
    model_folder = folder()
    ref = upload(store, tmp_path, "best.pt", weights(b"one"))
    path = model_folder.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal())
    path.write_bytes(damaged)
    assert model_folder.resolve(ModelObject(ref=ref), Task.DETECT, StopSignal()) == path
    assert path.read_bytes() == weights(b"one")
