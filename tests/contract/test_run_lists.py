"""The contract of every run table: lists, filters and cursors."""

import base64
import json
import uuid
from contextlib import suppress

import pytest
from queue_adapters import SqliteLab, ago, claim, enqueue

from trainer.core.errors import BadRequest
from trainer.core.job import Status
from trainer.core.run_row import RunFilter, RunOrder

PROJECT = "11111111-1111-4111-8111-111111111111"


def ids(page):
    return [run.id for run in page.runs]


def ids_of_pages(queue_lab, order, limit):
    """Return the ids of all runs, read page by page."""
    found, cursor = [], None
    while True:
        page = queue_lab.queue.list(order=order, limit=limit, after=cursor)
        found += ids(page)
        cursor = page.next
        if cursor is None:
            return found


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


def test_empty_table_returns_empty_page(queue_lab):
    page = queue_lab.queue.list()
    assert (page.runs, page.next) == ((), None)


@pytest.mark.parametrize("order", RunOrder)
def test_pages_have_every_run_once_even_with_equal_sort_keys(queue_lab, order):
    created = ago(50)
    runs = {queue_lab.insert(created_at=created, priority=n % 2) for n in range(7)}

    found = ids_of_pages(queue_lab, order, limit=2)

    assert len(found) == 7
    assert set(found) == runs


@pytest.mark.parametrize("order", RunOrder)
def test_pages_have_every_run_once_for_unusual_creation_times(queue_lab, order):
    times = ["2026-01-01T00:00:00.000001+00:00", "infinity", "10000-02-28T00:00:00+00:00"]
    times += ["yesterday", ""] if isinstance(queue_lab, SqliteLab) else ["0044-03-15T00:00:00+00:00 BC", "-infinity"]
    runs = [queue_lab.insert(created_at=time) for time in times for _ in range(2)]

    found = ids_of_pages(queue_lab, order, limit=1)

    assert found == ids(queue_lab.queue.list(order=order))
    assert sorted(found) == sorted(runs)


def test_run_inserted_between_two_pages_does_not_shift_the_next_page(queue_lab):
    old = [queue_lab.insert(created_at=ago(seconds)) for seconds in (100, 200, 300)]
    first = queue_lab.queue.list(limit=1)
    queue_lab.insert(created_at=ago(1))

    assert ids(queue_lab.queue.list(limit=5, after=first.next)) == old[1:]


def test_list_in_claim_order_equals_order_of_claims(queue_lab):
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


def forged(*values):
    return base64.urlsafe_b64encode(json.dumps(["newest", *values]).encode()).decode()


@pytest.mark.parametrize("time", ["yesterday", "2026-13-01T00:00:00+00:00", "", "--infinity", "\ud800", "a,b)"])
def test_cursor_with_invalid_time_is_accepted_or_raises_bad_request(queue_lab, time):
    enqueue(queue_lab)
    with suppress(BadRequest):
        queue_lab.queue.list(after=forged(time, str(uuid.uuid4())))


def test_malformed_cursor_and_cursor_of_another_order_are_rejected(queue_lab):
    for _ in range(2):
        enqueue(queue_lab)
    cursor = queue_lab.queue.list(limit=1).next
    for odd in ("", "x", "ü", "W10=", cursor[:-4]):
        with pytest.raises(BadRequest, match="cursor"):
            queue_lab.queue.list(after=odd)
    for odd in (None, 7, ["x"], {}):
        with pytest.raises(BadRequest, match="cursor"):
            queue_lab.queue.list(after=forged(odd, str(uuid.uuid4())))
    with pytest.raises(BadRequest, match="omit it to get the first page"):
        queue_lab.queue.list(order=RunOrder.CLAIM, after=cursor)
