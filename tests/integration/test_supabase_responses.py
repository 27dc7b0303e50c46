"""Lost, late and rejected responses; invalid rows and late edits."""

import time
import uuid
from dataclasses import replace

import pytest

from tests.supabase_stack import token
from trainer.core.errors import Conflict, Misconfigured, Unavailable
from trainer.core.job import Completed, Interrupted, Retry, RunEvent, RunRequest, Verdict
from trainer.core.ports import Worker
from trainer.core.retry import RetryPolicy

ONCE = RetryPolicy(tries=1)


QUICK = {"claim": ONCE, "beat": ONCE, "finish": ONCE, "read": ONCE}


WORKER = Worker(id="w1")


def claimed(lab, queue=None):
    run_id = lab.queue.enqueue(RunRequest(data_yaml="set/data.yaml"))
    lease = (queue or lab.queue).claim(WORKER, str(uuid.uuid4()), 60)
    assert lease.job.id == run_id
    return lease


def lose_next_answer(lab):
    lab.stack.gateway.lose_answers = 1


def test_claim_is_idempotent_after_lost_response(supabase_lab):
    run_id = supabase_lab.queue.enqueue(RunRequest(data_yaml="a"))
    supabase_lab.queue.enqueue(RunRequest(data_yaml="b"))
    lose_next_answer(supabase_lab)
    lease = supabase_lab.queue.claim(WORKER, str(uuid.uuid4()), 60)
    assert (lease.job.id, lease.job.attempt) == (run_id, 1)
    assert sorted(row.status for row in supabase_lab.queue.list(limit=9).runs) == ["queued", "running"]


def test_heartbeat_is_idempotent_after_lost_response(supabase_lab):
    lease = claimed(supabase_lab)
    event = RunEvent(seq=7, at="2026-01-02T03:04:05+00:00", kind="phase", data={})
    lose_next_answer(supabase_lab)
    assert supabase_lab.queue.beat(lease, None, [event]) is Verdict.OK
    assert [(e.attempt, e.seq) for e in supabase_lab.queue.events(lease.job.id)] == [(1, 7)]


@pytest.mark.parametrize(
    ("outcome", "status", "failures"),
    [
        (Completed(results={"mAP": 0.5}, trained_model_url="u"), "completed", 0),
        (Retry(message="The disk is full."), "queued", 1),
        (Interrupted(checkpoint=None), "queued", 0),
    ],
    ids=["completed", "retry", "interrupted"],
)
def test_outcome_is_idempotent_after_lost_response(supabase_lab, outcome, status, failures):
    lease = claimed(supabase_lab)
    lose_next_answer(supabase_lab)
    assert supabase_lab.queue.finish(lease, outcome, []) is not None
    row = supabase_lab.queue.get(lease.job.id)
    assert (row.status, row.failures, row.attempt) == (status, failures, 1)


def test_insert_is_idempotent_after_lost_response(supabase_lab):
    lose_next_answer(supabase_lab)
    run_id = supabase_lab.queue.enqueue(RunRequest(data_yaml="a"))
    assert [row.id for row in supabase_lab.queue.list(limit=9).runs] == [run_id]


def test_call_is_not_repeated_before_retry_after_seconds(supabase_lab):
    answers = iter([(429, {"Retry-After": "1"}, b'{"message":"slow down"}')])
    supabase_lab.stack.gateway.faults = lambda *_: next(answers, None)
    began = time.monotonic()
    assert supabase_lab.queue.check() == []
    assert time.monotonic() - began >= 1.0


def test_rejected_call_is_not_retried(supabase_lab):
    queue = supabase_lab.another(token("service_role", exp=1_600_000_000))
    before = len(supabase_lab.stack.gateway.requests)
    with pytest.raises(Misconfigured):
        queue.claim(WORKER, str(uuid.uuid4()), 60)
    assert len(supabase_lab.stack.gateway.requests) == before + 1


def test_login_page_is_not_accepted_as_answer(supabase_lab):
    lease = claimed(supabase_lab)
    queue = supabase_lab.another(**QUICK)
    supabase_lab.stack.gateway.faults = lambda *_: (200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
    for call in (
        lambda: queue.beat(lease, None, []),
        lambda: queue.claim(WORKER, str(uuid.uuid4()), 60),
        lambda: queue.peek(WORKER),
        queue.check,
        lambda: queue.get(lease.job.id),
        lambda: queue.list(limit=1).runs,
    ):
        with pytest.raises(Unavailable, match="login page"):
            call()


@pytest.mark.parametrize(
    "configuration",
    [None, "", "nonsense", "{broken", "null", 5, True, [], ["a", {}], {"requires": 3}, {"requires": {"gpus": []}},
     {"requires": {"gpus": "many", "gpu_memory_gb": {"a": 1}}}, {"requires": {"gpus": -1}}, {"device": {"a": 1}},
     {"device": [[]]}, {"device": ","}, {"device": "cpu"}, {"requires": {"gpus": "9" * 500}}],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_invalid_configuration_does_not_fail_claim(supabase_lab, configuration):
    run_id = supabase_lab.insert(configuration=configuration, results=configuration)
    lease = supabase_lab.queue.claim(WORKER, str(uuid.uuid4()), 60)
    assert lease.job.id == run_id
    assert supabase_lab.queue.beat(lease, {"progress": {}}, []) is Verdict.OK


def test_late_cancel_does_not_change_completed_run(supabase_lab):
    lease = claimed(supabase_lab)
    supabase_lab.queue.finish(lease, Completed(results={"mAP": 0.5}, trained_model_url="u"), [])
    before = supabase_lab.queue.get(lease.job.id)
    supabase_lab.edit(lease.job.id, status="canceling", cancel_requested=True)
    supabase_lab.edit(lease.job.id, status="canceled", cancel_requested=True, error_message="Canceled by user.")
    after = supabase_lab.queue.get(lease.job.id)
    assert replace(after, updated_at=None) == replace(before, updated_at=None)


def test_run_that_app_trigger_keeps_is_not_reported_as_deleted(supabase_lab):
    run_id = supabase_lab.queue.enqueue(RunRequest(data_yaml="set/data.yaml"))
    supabase_lab.stack.sql(
        "create function public.keep_run() returns trigger language plpgsql as 'begin return null; end'; "
        "create trigger keep_run before delete on training_runs for each row execute function public.keep_run()"
    )
    try:
        with pytest.raises(Conflict, match=f"The database keeps the run {run_id}"):
            supabase_lab.queue.delete(run_id)
    finally:
        supabase_lab.stack.sql("drop trigger keep_run on training_runs; drop function public.keep_run()")


def test_run_ended_by_the_app_has_no_lease(supabase_lab):
    lease = claimed(supabase_lab)
    supabase_lab.edit(lease.job.id, status="canceled")
    assert supabase_lab.queue.get(lease.job.id).lease_expires_at is None
    assert supabase_lab.queue.beat(lease, None, []) is Verdict.LOST
