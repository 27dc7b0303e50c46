"""A user inserts a row with the ID of a deleted run of another user. The files of the deleted run are never used for it."""

import json
from dataclasses import replace

import pytest

from tests.supabase_fixtures import supabase, supabase_lab, supabase_servers  # noqa: F401 - fixtures
from tests.unit.worker.fakes import Down
from tests.unit.worker.harness import BUCKET, CLAIM, NEXT_CLAIM, WorkerFixture, interrupted_upload
from trainer.core.errors import BadRequest, RunFailed
from trainer.core.job import Requester
from trainer.core.stop import StopSignal
from trainer.weights.fine_tuning import FineTuning
from trainer.worker.journal import Journal

ALICE, BOB = "11111111-aaaa-4aaa-8aaa-111111111111", "22222222-bbbb-4bbb-8bbb-222222222222"
SETTINGS = {"epochs": 3, "compute": "cpu"}
OF_ALICE = b"of alice"


@pytest.fixture
def worker(tmp_path):
    return WorkerFixture(tmp_path)


def stopped(worker):
    worker.shut_down_in(epoch=2)
    run_id = worker.enqueue()
    worker.work(store=Down(worker))
    return run_id


def finished(worker):
    return interrupted_upload(worker)[0]


def stopped_in_second_attempt(worker):
    worker.shut_down_in(epoch=1)
    run_id = worker.enqueue()
    worker.work(store=Down(worker))
    worker.shutdown = StopSignal()
    worker.shut_down_in(epoch=2)
    worker.work(worker.claim(NEXT_CLAIM), worker.shutdown.child(), store=Down(worker))
    return run_id


def insert_again(worker, run_id, created_by=BOB):
    """Delete the row and insert a new row with the same ID, as an app does for another user."""
    for folder in worker.folders.attempts(run_id):
        if folder.path.exists():
            (folder.output.path / "weights" / "of_alice.pt").write_bytes(OF_ALICE)
    worker.delete_row(run_id)
    other = worker.enqueue()
    worker.update_row(other, id=run_id, created_by=created_by, configuration=SETTINGS)
    worker.train_normally()
    worker.shutdown = StopSignal()
    worker.trainer.orders.clear()


def assert_nothing_of_alice(worker, run_id):
    for path in (worker.home / "storage").rglob("*"):
        assert path.is_dir() or OF_ALICE not in path.read_bytes(), path
    assert not worker.warnings(run_id, "resumed")
    assert all(order.resume is None and order.best_of is None for order in worker.trainer.orders)


@pytest.mark.parametrize("created_by", [BOB, None], ids=["another owner", "same owner"])
@pytest.mark.parametrize("leave_files", [stopped, finished, stopped_in_second_attempt])
def test_files_of_deleted_run_are_not_used_for_new_row_with_its_id(worker, leave_files, created_by):
    run_id = leave_files(worker)
    insert_again(worker, run_id, created_by)

    worker.work(worker.claim(CLAIM), StopSignal())

    row = worker.row(run_id)
    assert row["status"] == "completed", row["error_message"]
    assert len(worker.trainer.orders) == 1, "the new row is trained, from its start"
    assert "last of" not in (worker.folders.runs / f"train_{run_id}" / "run.log").read_text()
    assert_nothing_of_alice(worker, run_id)


def test_failed_attempt_of_new_row_publishes_no_file_of_deleted_run(worker):
    run_id = stopped(worker)
    insert_again(worker, run_id)
    worker.fail_in(1, RunFailed("wrong"))

    worker.work(worker.claim(CLAIM), StopSignal())

    assert worker.row(run_id)["status"] == "failed"
    assert worker.artifacts(run_id).keys() <= {"run.log", "manifest.json"}
    assert_nothing_of_alice(worker, run_id)


def test_crash_right_after_claim_publishes_no_file_of_deleted_run(worker):
    run_id = stopped(worker)
    insert_again(worker, run_id)
    Journal.create(worker.folders.journals, worker.claim(CLAIM)).close()  # the process is killed here

    worker.deliver_orphans()

    assert not worker.artifacts(run_id)
    assert_nothing_of_alice(worker, run_id)


def test_later_attempt_of_new_row_uses_no_file_of_deleted_run(worker):
    """The first attempt of the new row runs on another host, so that this host has only the files of the deleted run."""
    run_id = stopped(worker)
    insert_again(worker, run_id)
    lease = worker.claim(CLAIM)

    worker.work(replace(lease, job=replace(lease.job, attempt=2)), StopSignal())

    assert len(worker.trainer.orders) == 1
    assert_nothing_of_alice(worker, run_id)


def test_files_cannot_be_used_if_folder_of_deleted_run_cannot_be_removed(worker, monkeypatch):
    run_id = stopped(worker)
    insert_again(worker, run_id)

    def fail(folder):
        raise PermissionError(13, "not permitted", str(folder))

    monkeypatch.setattr("trainer.worker.run_folders.remove_renamed", fail)
    worker.work(worker.claim(CLAIM), StopSignal())

    assert worker.row(run_id)["status"] == "queued"
    assert_nothing_of_alice(worker, run_id)


def test_same_row_resumes_after_edits_of_other_columns(worker):
    run_id = stopped(worker)
    worker.update_row(run_id, run_name="other", priority=3, updated_at="2030-01-01T00:00:00+00:00", project_id="x")
    worker.train_normally()

    worker.work_again()

    assert worker.warnings(run_id, "resumed") == ["Resumed from the checkpoint of epoch 1."]


def test_objects_of_deleted_run_cannot_be_base_model_of_new_row_with_its_id(supabase_lab):  # noqa: F811
    """Over the real database: the user chooses the ID, but neither the time of creation nor the list of artifacts."""
    sql = supabase_lab.stack.sql
    first = sql(f"insert into training_runs (run_name, created_by) values ('a', '{ALICE}') returning id").strip()
    before = sql(f"select created_at from training_runs where id = '{first}'")
    sql(f"delete from training_runs where id = '{first}'")
    claims = {"role": "authenticated", "sub": BOB}
    columns = "id, run_name, created_by, data_yaml, configuration, status"
    values = f"'{first}', 'b', '{BOB}', 'd', '{json.dumps(SETTINGS)}', 'queued'"

    sql(f"insert into training_runs ({columns}) values ({values})", role="authenticated", claims=claims)

    assert sql(f"select created_at from training_runs where id = '{first}'") != before
    tuning = FineTuning(run_of=supabase_lab.queue.get, artifacts_bucket=BUCKET, scope="owner")
    for key in ("1/best.pt", "1/checkpoints/epoch-00003-abababab.pt"):
        with pytest.raises(BadRequest, match="the row of that run does not list this object"):
            tuning.require_object(f"training_runs/{first}/{key}", Requester(created_by=BOB))
