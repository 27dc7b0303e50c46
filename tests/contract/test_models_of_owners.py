"""The owner in a claimed row decides from which runs in the same queue the row may start."""

import uuid

import pytest
from queue_adapters import claim

from trainer.core.errors import BadRequest
from trainer.weights.fine_tuning import FineTuning


def completed(queue_lab, created_by):
    run_id = str(uuid.uuid4())
    best = {"name": "best.pt", "path": f"training_runs/{run_id}/1/best.pt", "sha256": "a" * 64}
    queue_lab.insert(id=run_id, status="completed", created_by=created_by, results={"artifacts": [best]})
    return run_id


@pytest.mark.parametrize("author", ["ann", "bob", None])
def test_row_starts_only_from_runs_of_its_owner(queue_lab, author):
    runs = {owner: completed(queue_lab, owner) for owner in ("ann", "bob", None)}
    queue_lab.insert(created_by=author)
    job = claim(queue_lab).job
    fine_tuning = FineTuning(run_of=queue_lab.queue.get, artifacts_bucket="artifacts", scope="owner")

    for owner, run_id in runs.items():
        key = f"training_runs/{run_id}/1/best.pt"
        if owner == author:
            assert fine_tuning.best_of(run_id, job.requester)[0].key == key
            fine_tuning.require_object(key, job.requester)
            continue
        with pytest.raises(BadRequest, match="no run with this id among the runs of the owner"):
            fine_tuning.best_of(run_id, job.requester)
        with pytest.raises(BadRequest, match="no run with this id among the runs of the owner"):
            fine_tuning.require_object(key, job.requester)


@pytest.mark.parametrize("run_id", ["x", "a,b)", "' or 1=1", str(uuid.UUID(int=7))])
def test_key_with_an_id_that_no_run_has_is_refused(queue_lab, run_id):
    queue_lab.insert()
    requester = claim(queue_lab).job.requester
    fine_tuning = FineTuning(run_of=queue_lab.queue.get, artifacts_bucket="artifacts", scope="owner")

    with pytest.raises(BadRequest, match="no run with this id among the runs of the owner"):
        fine_tuning.require_object(f"training_runs/{run_id}/1/best.pt", requester)
