"""Wrong settings, outages and lost responses."""

import socket
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.supabase_gateway import Gateway
from tests.supabase_stack import PostgREST, token
from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Completed, Interrupted, Retry, RunEvent, RunRequest, Verdict
from trainer.core.ports import Worker
from trainer.core.retry import RetryPolicy
from trainer.jobs.supabase import SCHEMA_VERSION, SupabaseQueue
from trainer.remote.supabase import CallLimits, Project

ONCE = RetryPolicy(tries=1)
QUICK = {"claim": ONCE, "beat": ONCE, "finish": ONCE, "read": ONCE}
PATIENT = RetryPolicy(tries=100, first_wait=0.1, longest_wait=0.2, total_seconds=30)
WORKER = Worker(id="w1")


def claimed(lab, queue=None):
    run_id = lab.queue.enqueue(RunRequest(data_yaml="set/data.yaml"))
    lease = (queue or lab.queue).claim(WORKER, str(uuid.uuid4()), 60)
    assert lease.job.id == run_id
    return lease


def error_of(url, key):
    project = Project(url, key, CallLimits(connect=3, read=5, total=8))
    with project, pytest.raises((Misconfigured, Unavailable)) as caught:
        SupabaseQueue(project, **QUICK).check()
    assert "\n" not in str(caught.value)
    assert key not in str(caught.value)
    return caught.value


# ── wrong settings ──


def test_closed_port_is_unavailable(supabase):
    error = error_of("http://127.0.0.1:9", supabase.service_key)
    assert isinstance(error, Unavailable)
    assert "127.0.0.1:9" in str(error)


def test_silent_server_times_out(supabase):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        limits = CallLimits(connect=1, read=0.3, total=60)
        project = Project(f"http://127.0.0.1:{silent.getsockname()[1]}", supabase.service_key, limits)
        began = time.monotonic()
        with project, pytest.raises(Unavailable, match="no answer in time"):
            SupabaseQueue(project, **QUICK).claim(WORKER, str(uuid.uuid4()), 60)
        assert time.monotonic() - began < 20


def test_unknown_host_name_is_unavailable(supabase):
    error = error_of("http://no-such-project.invalid", supabase.service_key)
    assert isinstance(error, Unavailable)
    assert "no-such-project.invalid" in str(error)
    assert "cannot be resolved" in str(error)


def test_url_of_another_server_is_misconfigured(supabase):
    error = error_of(f"{supabase.url}/elsewhere", supabase.service_key)
    assert isinstance(error, Misconfigured)
    assert "SUPABASE_URL" in str(error)


def test_key_of_another_project_is_misconfigured(supabase):
    header, payload, signature = supabase.service_key.split(".")
    error = error_of(supabase.url, f"{header}.{payload}.{signature[::-1]}")
    assert isinstance(error, Misconfigured)
    assert "SUPABASE_SERVICE_ROLE_KEY" in str(error)


def test_expired_key_is_misconfigured(supabase):
    error = error_of(supabase.url, token("service_role", exp=1_600_000_000))
    assert isinstance(error, Misconfigured)
    assert "expired" in str(error)


def test_anonymous_key_is_refused_by_database_too(supabase_lab):
    anonymous = supabase_lab.another(supabase_lab.stack.anon_key, **QUICK)
    with pytest.raises(Misconfigured, match=r"its role is anon.*SUPABASE_SERVICE_ROLE_KEY"):
        anonymous.claim(WORKER, str(uuid.uuid4()), 60)


@pytest.fixture
def other_project(supabase, tmp_path):
    """Return a function that starts another project on a database named `other`."""
    started = []

    def start(*, migrated: bool, then: str = "") -> str:
        supabase.postgres.create_database("other", migrated=migrated)
        supabase.sql(then, database="other")
        server = PostgREST(tmp_path, supabase.postgres.port, "other")
        server.start()
        gateway = Gateway({"/rest/v1": f"http://127.0.0.1:{server.port}"})
        gateway.start()
        started.extend([gateway, server])
        return gateway.url

    yield start
    for each in started:
        each.stop()
    supabase.sql("drop database if exists other with (force);", database="postgres")


def test_missing_migrations_are_misconfigured(supabase, other_project):
    error = error_of(other_project(migrated=False), supabase.service_key)
    assert isinstance(error, Misconfigured)
    assert "apply the migrations in supabase/migrations/" in str(error)


def test_old_migrations_are_misconfigured(supabase, other_project):
    older = f"create or replace function trainer_schema_version() returns integer language sql as 'select {SCHEMA_VERSION - 1}';"
    error = error_of(other_project(migrated=True, then=older), supabase.service_key)
    assert isinstance(error, Misconfigured)
    assert f"version {SCHEMA_VERSION - 1}" in str(error)
    assert "apply the migrations" in str(error)


# ── outages ──


@pytest.fixture(params=["postgres", "postgrest"])
def server(supabase, request):
    """Return a server that the test may stop."""
    yield getattr(supabase, request.param)
    supabase.restart()


@contextmanager
def started_after(seconds, server):
    timer = threading.Timer(seconds, server.start)
    timer.start()
    yield
    timer.join()


def test_service_waits_for_server_that_is_down_at_start(supabase_lab, server):
    server.stop()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        supabase_lab.another(**QUICK).check()
    with started_after(0.5, server):
        assert supabase_lab.another(read=PATIENT).check() == []


def test_short_outage_loses_nothing(supabase_lab, server):
    queue = supabase_lab.another(**QUICK)
    lease = claimed(supabase_lab)
    event = RunEvent(seq=1, at="2026-01-02T03:04:05+00:00", kind="epoch", data={"epoch": 1})
    server.stop()
    for call in (
        lambda: queue.beat(lease, {"progress": {"epoch": 1}}, [event]),
        lambda: queue.claim(WORKER, str(uuid.uuid4()), 60),
        lambda: queue.finish(lease, Completed(results={}, trained_model_url=None), []),
        lambda: queue.get(lease.job.id),
    ):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            call()
    patient = supabase_lab.another(beat=PATIENT, finish=PATIENT)
    with started_after(0.3, server):
        assert patient.beat(lease, {"progress": {"epoch": 1}}, [event]) is Verdict.OK
    assert patient.finish(lease, Completed(results={"mAP": 0.5}, trained_model_url="u"), []) is not None
    row = queue.get(lease.job.id)
    assert (row.status, row.results) == ("completed", {"mAP": 0.5, "progress": {"epoch": 1}})
    assert [e.seq for e in queue.events(lease.job.id)] == [1]


def test_database_crash_loses_nothing(supabase_lab, request):
    request.addfinalizer(supabase_lab.stack.restart)
    lease, queue = claimed(supabase_lab), supabase_lab.another(beat=PATIENT, read=PATIENT)
    for n in range(1, 4):
        supabase_lab.stack.postgres.crash()
        supabase_lab.stack.postgres.start()
        # the server's pool still has connections to the old database process
        assert queue.beat(lease, {"n": n}, []) is Verdict.OK
    assert queue.get(lease.job.id).results == {"n": 3}


def test_heartbeat_ends_before_the_next_is_due(supabase_lab):
    lease = claimed(supabase_lab)
    supabase_lab.stack.gateway.faults = lambda *_: (503, {}, b"")
    queue = supabase_lab.another(beat=RetryPolicy(tries=500, first_wait=0.2, longest_wait=0.2, total_seconds=1.0))
    began = time.monotonic()
    with pytest.raises(Unavailable):
        queue.beat(lease, None, [])
    assert time.monotonic() - began < 20


# ── lost, late and rejected responses ──


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


def test_retry_after_is_respected(supabase_lab):
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


# ── invalid rows and late edits ──


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


def test_run_ended_by_the_app_has_no_lease(supabase_lab):
    lease = claimed(supabase_lab)
    supabase_lab.edit(lease.job.id, status="canceled")
    assert supabase_lab.queue.get(lease.job.id).lease_expires_at is None
    assert supabase_lab.queue.beat(lease, None, []) is Verdict.LOST
