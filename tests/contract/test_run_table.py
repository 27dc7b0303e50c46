"""The contract of every run table for an API, a search and the command line: lists, labels, deletion, idempotent inserts."""

import uuid

import pytest
from queue_adapters import ago, claim, claimed, enqueue, event, expire

from trainer.core.errors import BadRequest, Conflict
from trainer.core.job import Completed, RunRequest, Status, Verdict
from trainer.core.run_row import RunFilter, RunOrder

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


# ── typed rows ──


def test_rows_hold_no_fencing_token(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"a": 1}, [event()])

    rows = [queue_lab.queue.get(lease.job.id), *queue_lab.queue.list().runs, *queue_lab.queue.workers()]
    rows += [*queue_lab.queue.events(lease.job.id), queue_lab.queue.cancel(lease.job.id)]

    assert len(rows) == 5
    assert all(lease.claim_id not in str(row.as_json()) for row in rows)
    assert all("claim_id" not in row.as_json() for row in rows)


def test_group_and_tags_reach_row_and_worker(queue_lab):
    run_id = queue_lab.queue.enqueue(REQUEST)

    row = queue_lab.queue.get(run_id)
    assert (row.group, row.tags) == ("search-1", ("a", "b"))
    request = claim(queue_lab).job.request
    assert (request.group, request.tags) == ("search-1", ("a", "b"))


@pytest.mark.parametrize(
    "labels",
    [{"group": "g" * 201}, {"tags": ("t" * 101,)}, {"tags": tuple(map(str, range(51)))}],
)
def test_labels_over_their_limit_are_rejected(queue_lab, labels):
    with pytest.raises(BadRequest, match=f"{next(iter(labels))}: .*longer"):
        queue_lab.queue.enqueue(RunRequest(data_yaml="x", **labels))


# ── idempotent insert ──


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
def test_enqueue_of_another_request_under_a_used_id_raises_conflict(queue_lab, other):
    run_id = queue_lab.queue.enqueue(REQUEST, id=str(uuid.uuid4()))
    request = RunRequest(**{**vars(REQUEST), **other})

    with pytest.raises(Conflict, match=f"{run_id}: there is another run with this id"):
        queue_lab.queue.enqueue(request, id=run_id)

    assert len(queue_lab.queue.list().runs) == 1


def test_every_form_of_a_uuid_is_the_same_id(queue_lab):
    run_id = str(uuid.uuid4())
    assert queue_lab.queue.enqueue(REQUEST, id=run_id.upper()) == run_id
    assert queue_lab.queue.enqueue(REQUEST, id=run_id.replace("-", "")) == run_id


@pytest.mark.parametrize("odd", ["", "7", "no-uuid", "../x", "a\x00b"])
def test_id_must_be_a_uuid(queue_lab, odd):
    with pytest.raises(BadRequest, match="must be a UUID"):
        queue_lab.queue.enqueue(REQUEST, id=odd)


# ── lists ──


def test_list_is_newest_first_and_continues_at_its_cursor(queue_lab):
    runs = [queue_lab.insert(created_at=ago(seconds)) for seconds in (300, 100, 200)]

    first = queue_lab.queue.list(limit=2)
    last = queue_lab.queue.list(limit=2, after=first.next)

    assert (ids(first), ids(last)) == ([runs[1], runs[2]], [runs[0]])
    assert last.next is None


def test_full_last_page_has_no_cursor(queue_lab):
    for _ in range(2):
        enqueue(queue_lab)
    assert queue_lab.queue.list(limit=2).next is None


def test_empty_table_is_empty_page(queue_lab):
    page = queue_lab.queue.list()
    assert (page.runs, page.next) == ((), None)


@pytest.mark.parametrize("order", RunOrder)
def test_pages_have_every_run_once_also_when_their_sort_keys_are_equal(queue_lab, order):
    created = ago(50)
    runs = {queue_lab.insert(created_at=created, priority=n % 2) for n in range(7)}
    found, cursor = [], None
    while True:
        page = queue_lab.queue.list(order=order, limit=2, after=cursor)
        found += ids(page)
        cursor = page.next
        if cursor is None:
            break

    assert len(found) == 7
    assert set(found) == runs


def test_runs_inserted_between_two_pages_do_not_shift_them(queue_lab):
    old = [queue_lab.insert(created_at=ago(seconds)) for seconds in (100, 200, 300)]
    first = queue_lab.queue.list(limit=1)
    queue_lab.insert(created_at=ago(1))

    assert ids(queue_lab.queue.list(limit=5, after=first.next)) == old[1:]


def test_claim_order_matches_claims(queue_lab):
    for priority, seconds in ((0, 50), (5, 10), (0, 90), (5, 20)):
        queue_lab.insert(priority=priority, created_at=ago(seconds))

    listed = ids(queue_lab.queue.list(order=RunOrder.CLAIM))

    assert listed == [claim(queue_lab).job.id for _ in range(4)]
    assert ids(queue_lab.queue.list(order=RunOrder.OLDEST))[0] == listed[2]


def test_filters_select_runs_that_match_all_of_them(queue_lab):
    theirs = queue_lab.insert(project_id=PROJECT, created_by="ann", run_group="g", run_tags=["x", "y"])
    queue_lab.insert(project_id=PROJECT, created_by="bob")
    run_id = enqueue(queue_lab, group="g", tags=("y",), priority=9)
    claim(queue_lab, "gpu-1")

    def found(**wanted):
        return set(ids(queue_lab.queue.list(RunFilter(**wanted))))

    assert found(group="g") == {theirs, run_id}
    assert found(group="g", tags=("x",)) == {theirs}
    assert found(tags=("y", "x")) == {theirs}
    assert found(tags=("y", "z")) == set()
    assert found(project_id=PROJECT, created_by="ann") == {theirs}
    assert found(worker_id="gpu-1") == {run_id}
    assert found(status=(Status.RUNNING,)) == {run_id}
    assert found(status=(Status.RUNNING, Status.QUEUED), project_id=PROJECT, created_by="ann") == {theirs}


ODD = [
    "",
    'a"b',
    "a,b",
    "a\\b",
    "{a}",
    "(a)",
    "a.b:c",
    "null",
    "'; drop table training_runs",
    "ü 漢 🐕",
    "a\x00b",
    "%",
    "*",
]


@pytest.mark.parametrize("odd", ODD)
def test_filter_values_are_taken_literally(queue_lab, odd):
    run_id = enqueue(queue_lab, group=odd, tags=(odd,))
    enqueue(queue_lab, group="other", tags=("other",))

    assert ids(queue_lab.queue.list(RunFilter(group=odd))) == [run_id]
    assert ids(queue_lab.queue.list(RunFilter(tags=(odd,)))) == [run_id]
    assert ids(queue_lab.queue.list(RunFilter(worker_id=odd))) == []
    assert ids(queue_lab.queue.list(RunFilter(project_id=odd))) == []


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_limit_out_of_range_is_rejected(queue_lab, limit):
    with pytest.raises(BadRequest, match=r"limit = .*must be from 1 to 1000"):
        queue_lab.queue.list(limit=limit)


def test_cursor_of_another_list_is_rejected(queue_lab):
    for _ in range(2):
        enqueue(queue_lab)
    cursor = queue_lab.queue.list(limit=1).next
    for odd in ("", "x", "ü", "W10=", cursor[:-4]):
        with pytest.raises(BadRequest, match="cursor"):
            queue_lab.queue.list(after=odd)
    with pytest.raises(BadRequest, match="start without one"):
        queue_lab.queue.list(order=RunOrder.CLAIM, after=cursor)


# ── priority ──


def test_priority_decides_next_claim(queue_lab):
    enqueue(queue_lab)
    later = enqueue(queue_lab)

    assert queue_lab.queue.set_priority(later, 3).priority == 3

    assert claim(queue_lab).job.id == later


def test_priority_of_unknown_run_or_out_of_range_is_rejected(queue_lab):
    assert queue_lab.queue.set_priority(UNKNOWN, 3) is None
    run_id = enqueue(queue_lab)
    with pytest.raises(BadRequest, match="must be a whole number"):
        queue_lab.queue.set_priority(run_id, 2**31)


# ── deletion ──


def test_deleted_run_is_gone_with_its_events(queue_lab):
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
def test_held_run_cannot_be_deleted(queue_lab, status):
    lease = claimed(queue_lab)
    if status == "canceling":
        queue_lab.queue.cancel(lease.job.id)

    with pytest.raises(Conflict, match="cancel it and wait until it has ended"):
        queue_lab.queue.delete(lease.job.id)

    assert queue_lab.queue.beat(lease, None, []) is not Verdict.LOST


def test_run_with_expired_lease_can_be_deleted(queue_lab):
    lease = claimed(queue_lab)
    expire(queue_lab, lease.job.id)

    assert queue_lab.queue.delete(lease.job.id) is True

    assert queue_lab.queue.beat(lease, None, [event()]) is Verdict.LOST


@pytest.mark.parametrize("unknown", [UNKNOWN, "no-uuid", "", "a\x00b"])
def test_unknown_run_is_not_deleted(queue_lab, unknown):
    assert queue_lab.queue.delete(unknown) is False


# ── workers ──


def test_worker_row_has_hardware_that_worker_reported(queue_lab):
    from trainer.core.ports import Worker

    queue_lab.queue.report(
        Worker(id="w1", hardware={"gpu_name": "H200", "gpu_memory_gb": 139.5, "version": "1.2.3", "slots": 2}), None
    )

    [row] = queue_lab.queue.workers()
    assert (row.worker_id, row.status, row.version, row.slots, row.current_runs) == ("w1", "online", "1.2.3", 2, 0)
    assert row.hardware == {"gpu_name": "H200", "gpu_memory_gb": 139.5}
