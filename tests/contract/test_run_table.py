"""The contract of every run table: typed rows, idempotent inserts, priorities and deletions."""

import uuid
from dataclasses import asdict

import pytest
from queue_adapters import claim, claimed, enqueue, event, expire

from trainer.core.errors import BadRequest, Conflict
from trainer.core.job import Completed, RunRequest, Verdict

PROJECT = "11111111-1111-4111-8111-111111111111"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
REQUEST = RunRequest(
    data_yaml="set/data.yaml",
    base_model="yolo11n.pt",
    configuration={"epochs": 3, "lr0": 0.01, "big": 1e22, "deep": {"a": [1, None, True, "ü"]}},
    name="nuts",
    group="search-1",
    tags=("a", "b"),
)


def ids(page):
    return [run.id for run in page.runs]


def test_rows_do_not_contain_fencing_token(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"a": 1}, [event()])

    rows = [queue_lab.queue.get(lease.job.id), *queue_lab.queue.list().runs, *queue_lab.queue.workers()]
    rows += [*queue_lab.queue.events(lease.job.id), queue_lab.queue.cancel(lease.job.id)]

    assert len(rows) == 5
    assert all(lease.claim_id not in str(asdict(row)) for row in rows)
    assert all("claim_id" not in asdict(row) for row in rows)


def test_group_and_tags_reach_row_and_worker(queue_lab):
    run_id = queue_lab.queue.enqueue(REQUEST)

    row = queue_lab.queue.get(run_id)
    assert (row.group, row.tags) == ("search-1", ("a", "b"))
    request = claim(queue_lab).job.request
    assert (request.group, request.tags) == ("search-1", ("a", "b"))


@pytest.mark.parametrize(
    "fields",
    [{"group": "g" * 201}, {"tags": ("t" * 101,)}, {"tags": tuple(map(str, range(51)))}],
)
def test_group_and_tags_over_their_limit_are_rejected(queue_lab, fields):
    with pytest.raises(BadRequest, match=f"{next(iter(fields))}: .*longer"):
        queue_lab.queue.enqueue(RunRequest(data_yaml="x", **fields))


def test_enqueue_with_same_id_and_request_inserts_one_run(queue_lab):
    run_id = str(uuid.uuid4())

    assert [queue_lab.queue.enqueue(REQUEST, id=run_id) for _ in range(2)] == [run_id, run_id]

    assert ids(queue_lab.queue.list()) == [run_id]
    assert queue_lab.queue.get(run_id).configuration == REQUEST.configuration


def test_enqueue_is_idempotent_after_run_has_started_and_its_priority_changed(queue_lab):
    run_id = queue_lab.queue.enqueue(REQUEST, id=str(uuid.uuid4()))
    queue_lab.queue.set_priority(run_id, 7)
    claim(queue_lab)

    assert queue_lab.queue.enqueue(REQUEST, id=run_id) == run_id
    assert (queue_lab.queue.get(run_id).status, queue_lab.queue.get(run_id).priority) == ("running", 7)


@pytest.mark.parametrize(
    "other",
    [
        {"data_yaml": "other.yaml"},
        {"configuration": {"epochs": 4}},
        {"name": "bolts"},
        {"group": None},
        {"tags": ("b", "a")},
    ],
)
def test_enqueue_of_another_request_with_used_id_raises_conflict(queue_lab, other):
    run_id = queue_lab.queue.enqueue(REQUEST, id=str(uuid.uuid4()))
    request = RunRequest(**{**vars(REQUEST), **other})

    with pytest.raises(Conflict, match=f"{run_id}: there is another run with this id"):
        queue_lab.queue.enqueue(request, id=run_id)

    assert len(queue_lab.queue.list().runs) == 1


@pytest.mark.parametrize("number", [1e300, 1e23, 1e-05, 10**30, -0.0, float("nan")])
def test_enqueue_is_idempotent_for_unusual_numbers(queue_lab, number):
    request, run_id = RunRequest(data_yaml="d", configuration={"lr0": number}), str(uuid.uuid4())

    assert [queue_lab.queue.enqueue(request, id=run_id) for _ in range(2)] == [run_id, run_id]


def test_all_spellings_of_a_uuid_are_the_same_id(queue_lab):
    run_id = str(uuid.uuid4())
    assert queue_lab.queue.enqueue(REQUEST, id=run_id.upper()) == run_id
    assert queue_lab.queue.enqueue(REQUEST, id=run_id.replace("-", "")) == run_id


@pytest.mark.parametrize("odd", ["", "7", "no-uuid", "../x", "a\x00b"])
def test_id_that_is_not_a_uuid_is_rejected(queue_lab, odd):
    with pytest.raises(BadRequest, match="must be a UUID"):
        queue_lab.queue.enqueue(REQUEST, id=odd)


def test_priority_decides_next_claim(queue_lab):
    enqueue(queue_lab)
    later = enqueue(queue_lab)

    assert queue_lab.queue.set_priority(later, 3).priority == 3

    assert claim(queue_lab).job.id == later


def test_set_priority_returns_none_for_unknown_run_and_rejects_value_out_of_range(queue_lab):
    assert queue_lab.queue.set_priority(UNKNOWN, 3) is None
    run_id = enqueue(queue_lab)
    with pytest.raises(BadRequest, match="must be a whole number"):
        queue_lab.queue.set_priority(run_id, 2**31)


def test_delete_removes_run_and_its_events(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [event()])
    queue_lab.queue.finish(lease, Completed(results={}, trained_model_url=None), [])

    assert queue_lab.queue.delete(lease.job.id) is True

    assert queue_lab.queue.get(lease.job.id) is None
    assert queue_lab.queue.events(lease.job.id) == []
    assert queue_lab.queue.delete(lease.job.id) is False


def test_queued_run_can_be_deleted(queue_lab):
    run_id = enqueue(queue_lab)
    assert queue_lab.queue.delete(run_id) is True
    assert claim(queue_lab) is None


@pytest.mark.parametrize("status", ["running", "canceling"])
def test_run_with_valid_lease_cannot_be_deleted(queue_lab, status):
    lease = claimed(queue_lab)
    if status == "canceling":
        queue_lab.queue.cancel(lease.job.id)

    with pytest.raises(Conflict, match="cancel the run, wait until it has ended, then delete it"):
        queue_lab.queue.delete(lease.job.id)

    assert queue_lab.queue.beat(lease, None, []) is not Verdict.LOST


def test_run_with_expired_lease_can_be_deleted(queue_lab):
    lease = claimed(queue_lab)
    expire(queue_lab, lease.job.id)

    assert queue_lab.queue.delete(lease.job.id) is True

    assert queue_lab.queue.beat(lease, None, [event()]) is Verdict.LOST


@pytest.mark.parametrize("unknown", [UNKNOWN, "no-uuid", "", "a\x00b"])
def test_delete_of_unknown_run_returns_false(queue_lab, unknown):
    assert queue_lab.queue.delete(unknown) is False


def test_worker_row_has_hardware_that_worker_reported(queue_lab):
    from trainer.core.ports import Worker

    queue_lab.queue.report(
        Worker(id="w1", hardware={"gpu_name": "H200", "gpu_memory_gb": 139.5, "version": "1.2.3", "slots": 2}), None
    )

    [row] = queue_lab.queue.workers()
    assert (row.worker_id, row.status, row.version, row.slots, row.current_runs) == ("w1", "online", "1.2.3", 2, 0)
    assert row.hardware == {"gpu_name": "H200", "gpu_memory_gb": 139.5}
