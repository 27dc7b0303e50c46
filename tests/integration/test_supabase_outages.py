"""The queue client retries its calls during an outage, and no event or outcome is lost."""

import threading
import time
import uuid
from contextlib import contextmanager

import pytest

from trainer.core.errors import Unavailable
from trainer.core.job import Completed, RunEvent, RunRequest, Verdict
from trainer.core.ports import Worker
from trainer.core.retry import RetryPolicy

ONCE = RetryPolicy(tries=1)


QUICK = {"claim": ONCE, "beat": ONCE, "finish": ONCE, "read": ONCE}


PATIENT = RetryPolicy(tries=100, first_wait=0.1, longest_wait=0.2, total_seconds=30)


WORKER = Worker(id="w1")


def claimed(lab, queue=None):
    run_id = lab.queue.enqueue(RunRequest(data_yaml="set/data.yaml"))
    lease = (queue or lab.queue).claim(WORKER, str(uuid.uuid4()), 60)
    assert lease.job.id == run_id
    return lease


@pytest.fixture(params=["postgres", "postgrest"])
def server(supabase, request):
    """Return a server that the test can stop."""
    yield getattr(supabase, request.param)
    supabase.restart()


@contextmanager
def started_after(seconds, server):
    timer = threading.Timer(seconds, server.start)
    timer.start()
    yield
    timer.join()


def test_first_check_is_retried_until_server_starts(supabase_lab, server):
    server.stop()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        supabase_lab.another(**QUICK).check()
    with started_after(0.5, server):
        assert supabase_lab.another(read=PATIENT).check() == []


def test_short_outage_loses_no_event_and_no_outcome(supabase_lab, server):
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


def test_heartbeat_succeeds_after_each_database_crash(supabase_lab, request):
    request.addfinalizer(supabase_lab.stack.restart)
    lease, queue = claimed(supabase_lab), supabase_lab.another(beat=PATIENT, read=PATIENT)
    for n in range(1, 4):
        supabase_lab.stack.postgres.crash()
        supabase_lab.stack.postgres.start()
        # the server's pool still has connections to the old database process
        assert queue.beat(lease, {"n": n}, []) is Verdict.OK
    assert queue.get(lease.job.id).results == {"n": 3}


def test_refused_heartbeat_ends_at_its_time_limit(supabase_lab):
    lease = claimed(supabase_lab)
    supabase_lab.stack.gateway.faults = lambda *_: (503, {}, b"")
    queue = supabase_lab.another(beat=RetryPolicy(tries=500, first_wait=0.2, longest_wait=0.2, total_seconds=1.0))
    began = time.monotonic()
    with pytest.raises(Unavailable):
        queue.beat(lease, None, [])
    assert time.monotonic() - began < 20
