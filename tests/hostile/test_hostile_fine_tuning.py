"""A row cannot start from the models of other users, and does not learn which runs exist."""

from __future__ import annotations

import io
import zipfile

import pytest

from trainer.core.dataset import ObjectRef, Task
from trainer.core.errors import BadRequest
from trainer.core.job import Requester
from trainer.core.model import ModelObject, ModelOfRun
from trainer.core.run_row import RunRow
from trainer.core.stop import StopSignal
from trainer.storage.local import LocalObjectStore
from trainer.weights.model_folder import ModelFolder

BUCKET = "training-artifacts"
ALICE, BOB = "11111111-aaaa-4aaa-8aaa-111111111111", "bob@example.org"
OF_ALICE, OF_BOB, OF_SERVICE = (f"0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a1{n}" for n in (1, 2, 3))
MISSING = "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a19"
PROJECT = "99999999-cccc-4ccc-8ccc-999999999999"


def weights(payload: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("best/data.pkl", payload)
    return buffer.getvalue()


def key_of(run_id: str) -> str:
    return f"training_runs/{run_id}/1/best.pt"


def row(run_id: str, created_by: str | None, key: str | None = None) -> RunRow:
    results = {"artifacts": [{"name": "best.pt", "path": key or key_of(run_id)}]}
    return RunRow(id=run_id, status="completed", created_by=created_by, project_id=PROJECT, results=results)


@pytest.fixture
def store(tmp_path):
    store = LocalObjectStore(tmp_path / "store")
    for key in (
        key_of(OF_ALICE),
        key_of(OF_BOB),
        key_of(OF_SERVICE),
        key_of(MISSING),
        "models/shared.pt",
        "private/x.pt",
    ):
        source = tmp_path / "source.pt"
        source.write_bytes(weights(key.encode()))
        store.upload(source, ObjectRef(bucket=BUCKET, key=key), StopSignal())
    return store


@pytest.fixture
def load(tmp_path, store):
    """Return a function that returns the content of the model of a row."""

    def do(model, created_by, *, project_id=None, scope="owner", rows=()):
        known = {OF_ALICE: row(OF_ALICE, ALICE), OF_BOB: row(OF_BOB, BOB), OF_SERVICE: row(OF_SERVICE, None)}
        known |= {found.id: found for found in rows}
        folder = ModelFolder(
            tmp_path / "models", store=store, artifacts_bucket=BUCKET, run_of=known.get, allow_download=False,
            fine_tune_from=scope,
        )  # fmt: skip
        requester = Requester(created_by=created_by, project_id=project_id)
        return folder.resolve(model, Task.DETECT, StopSignal(), requester).read_bytes()

    return do


def named(run_id):
    """Return both ways to name the best model of a run."""
    return [ModelOfRun(run_id=run_id), ModelObject(ref=ObjectRef(bucket=BUCKET, key=key_of(run_id)))]


@pytest.mark.parametrize("model", named(OF_ALICE) + named(OF_SERVICE), ids=str)
@pytest.mark.parametrize("project", [None, PROJECT])
def test_model_of_another_owner_is_refused(load, model, project):
    with pytest.raises(BadRequest, match="no run with this id among the runs of the owner"):
        load(model, BOB, project_id=project)


@pytest.mark.parametrize(("run_id", "owner"), [(OF_ALICE, ALICE), (OF_BOB, BOB), (OF_SERVICE, None)])
def test_model_of_the_same_owner_is_loaded(load, run_id, owner):
    for model in named(run_id):
        assert key_of(run_id).encode() in load(model, owner)


@pytest.mark.parametrize("kind", [0, 1], ids=["run", "object"])
def test_message_does_not_tell_whether_a_run_exists(load, kind):
    messages = set()
    for run_id in (OF_ALICE, MISSING):
        with pytest.raises(BadRequest) as refused:
            load(named(run_id)[kind], BOB)
        messages.add(str(refused.value).replace(run_id, "ID"))

    assert len(messages) == 1


@pytest.mark.parametrize(
    "key", ["private/x.pt", "best.pt", "training_runs/best.pt", f"x/{key_of(OF_ALICE)}", "modelsx/a.pt", "Models/a.pt"]
)
@pytest.mark.parametrize("owner", [ALICE, None])
def test_other_objects_of_the_artifacts_bucket_are_refused(load, key, owner):
    with pytest.raises(BadRequest, match="a row can start only from objects in training_runs/RUN_ID/"):
        load(ModelObject(ref=ObjectRef(bucket=BUCKET, key=key)), owner)


def test_shared_models_are_loaded_by_every_owner(load):
    for owner in (ALICE, BOB, None):
        shared = ModelObject(ref=ObjectRef(bucket=BUCKET, key="models/shared.pt"))
        assert b"models/shared.pt" in load(shared, owner)


@pytest.mark.parametrize("key", [key_of(OF_ALICE), "private/x.pt", f"training_runs/{OF_BOB}/../{OF_ALICE}/1/best.pt"])
def test_own_row_with_the_key_of_another_run_in_its_results_is_refused(load, key):
    """In some projects, a user can write the `results` of the user's own rows."""
    with pytest.raises(BadRequest, match=r"published no best\.pt"):
        load(ModelOfRun(run_id=OF_BOB), BOB, rows=[row(OF_BOB, BOB, key)])


def test_scope_project_needs_same_project_and_scope_any_allows_every_run(load):
    for model in named(OF_ALICE):
        assert load(model, BOB, project_id=PROJECT, scope="project")
        assert load(model, BOB, scope="any")
        for project in (None, MISSING):
            with pytest.raises(BadRequest, match="no run with this id"):
                load(model, BOB, project_id=project, scope="project")


def test_rows_without_a_project_share_no_project(load):
    lonely = RunRow(id=OF_ALICE, status="completed", created_by=ALICE, results=row(OF_ALICE, ALICE).results)
    with pytest.raises(BadRequest, match="no run with this id"):
        load(ModelOfRun(run_id=OF_ALICE), BOB, scope="project", rows=[lonely])
