"""Many workers at the same time, and a million finished or queued runs in the table."""

import os
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from benchmarks.claim import OFFER, fill_queue, in_database, percentiles
from trainer.core.job import Completed
from trainer.core.ports import Worker
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import StopSignal

FINISHED = 1_000_000


def test_lists_longer_than_a_server_page_are_complete(supabase_lab):
    supabase_lab.stack.sql("""
        insert into training_runs (run_name, created_at) select n, now() - n * interval '1 s' from generate_series(1, 2100) n;
        insert into training_run_events
        select id, 1 + n / 1000, n, now(), 'phase', '{}' from training_runs, generate_series(1, 2100) n where run_name = '1'""")
    first = supabase_lab.queue.list(limit=1000)
    second = supabase_lab.queue.list(limit=1000, after=first.next)
    assert [row.run_name for row in (*first.runs, *second.runs)] == [str(n) for n in range(1, 2001)]
    events = supabase_lab.queue.events(first.runs[0].id, after=(1, 50))
    assert [event.seq for event in events] == list(range(51, 2101))


def test_claim_requeues_at_most_500_expired_runs(supabase_lab):
    supabase_lab.stack.sql("""
        insert into training_runs (run_name, status, attempt, lease_expires_at)
        select 'run', 'running', 1, now() - interval '1 s' from generate_series(1, 700)""")
    lost = "select count(*) from training_runs where failures = 1"
    for expected in ("500", "700"):
        assert supabase_lab.queue.claim(Worker(id="w"), str(uuid.uuid4()), 60)
        assert supabase_lab.stack.sql(lost) == expected


@pytest.fixture
def million(supabase_lab):
    """Insert a million finished runs, without triggers, because their insert with triggers takes minutes."""
    supabase_lab.stack.sql(f"""
        set session_replication_role = replica;
        insert into training_runs (run_name, status, configuration, created_at, completed_at, claim_id)
        select 'run', (array['completed', 'failed', 'canceled'])[n % 3 + 1], '{{"epochs": 100}}',
               now() - n * interval '1 minute', now(), gen_random_uuid()
        from generate_series(1, {FINISHED}) as n;""")
    yield supabase_lab
    supabase_lab.stack.sql("truncate training_runs cascade;")


def in_parallel(workers: int, work) -> list:
    """Start `work(n)` in many threads at the same time and return the results."""
    gate = threading.Barrier(workers)

    def start(n: int):
        gate.wait()
        return work(n)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(start, range(workers)))


def insist(call):
    """Retry calls that get no answer, as a worker does on a busy machine."""
    return retrying(call, RetryPolicy(tries=20, first_wait=0.1, longest_wait=1.0, total_seconds=60), StopSignal())


def test_one_of_64_concurrent_claims_gets_the_run(supabase_lab):
    run_id = supabase_lab.insert()
    leases = in_parallel(64, lambda n: supabase_lab.queue.claim(Worker(id=f"w{n}"), str(uuid.uuid4()), 60))
    won = [lease for lease in leases if lease]
    assert [lease.job.id for lease in won] == [run_id]
    row = supabase_lab.rows()[run_id]
    assert (row["claim_id"], row["attempt"]) == (won[0].claim_id, 1)


def test_32_concurrent_repeats_of_one_claim_get_one_run(supabase_lab):
    supabase_lab.stack.sql("insert into training_runs (run_name) select 'run' from generate_series(1, 40)")
    claim_id = str(uuid.uuid4())
    leases = in_parallel(32, lambda n: supabase_lab.queue.claim(Worker(id="w"), claim_id, 60))
    assert len({lease.job.id for lease in leases}) == 1
    assert {lease.job.attempt for lease in leases} == {1}
    assert supabase_lab.stack.sql("select count(*) from training_runs where status = 'running'") == "1"


def test_claims_skip_index_entries_of_earlier_claims_without_a_vacuum(supabase_lab):
    fill_queue(supabase_lab.stack, 0, 5000)  # with 50 different requirements
    supabase_lab.stack.sql(f"select claim_training_run('w', gen_random_uuid(), 60, '{OFFER}');" * 400)
    plans = supabase_lab.stack.postgres.plans(f"select * from trainer.candidates('{OFFER}', 'w', 1);" * 3)
    fetched = [int(rows) for rows in re.findall(r"Heap Fetches: (\d+)", plans)]
    assert max(fetched[-3:]) <= 60, "each lookup reads rows that were claimed before"


@pytest.mark.long
def test_64_workers_serve_each_of_1000_runs_once(supabase_lab):
    supabase_lab.stack.sql("insert into training_runs (run_name) select 'run' from generate_series(1, 1000)")

    def drain(n: int) -> list[str]:
        served, queue = [], supabase_lab.queue
        while lease := insist(partial(queue.claim, Worker(id=f"w{n}"), str(uuid.uuid4()), 60)):
            outcome = Completed(results={"by": n}, trained_model_url=None)
            assert insist(partial(queue.finish, lease, outcome, [])) == "completed"
            served.append(lease.job.id)
        return served

    served = [run_id for runs in in_parallel(64, drain) for run_id in runs]
    assert len(served) == len(set(served)) == 1000
    assert (
        supabase_lab.stack.sql("select count(*) from training_runs where status = 'completed' and attempt = 1")
        == "1000"
    )


def test_concurrent_claims_requeue_each_expired_run_once(supabase_lab):
    supabase_lab.stack.sql("""
        insert into training_runs (run_name, status, claim_id, attempt, lease_expires_at, started_at)
        select 'run', 'running', gen_random_uuid(), 1, now() - interval '1 s', now() from generate_series(1, 30)""")
    leases = in_parallel(16, lambda n: supabase_lab.queue.claim(Worker(id=f"w{n}"), str(uuid.uuid4()), 60))
    won = [lease.job.id for lease in leases if lease]
    assert len(won) == len(set(won))
    assert supabase_lab.stack.sql("select distinct failures from training_runs") == "1"
    assert supabase_lab.stack.sql("select count(*) from training_run_events where kind = 'lease_expired'") == "30"


@pytest.mark.long
def test_claim_among_a_million_finished_runs_reads_only_indexes(million):
    for statistics in ("-- none, as after a bulk load", "analyze training_runs;"):
        million.stack.sql(statistics)
        million.insert(configuration={"requires": {"gpus": 1}})
        million.insert(status="running", worker_id="gone", started_at="2020-01-01T00:00:00Z")
        million.insert()
        plans = million.stack.postgres.plans("select * from claim_training_run('w', gen_random_uuid(), 60);")
        assert "Seq Scan on training_runs" not in plans
        for index in ("training_runs_ready_idx", "training_runs_lease_idx", "training_runs_claim_idx"):
            assert index in plans, f"{index} is not used:\n{plans}"
    assert million.stack.sql("select count(*) from training_runs where status = 'running'") == "2"

    for look in ("select * from peek_training_run();",
                 "select * from training_runs order by created_at desc, id limit 20;",
                 "select settle_training_runs();"):  # fmt: skip
        plans = million.stack.postgres.plans(look)
        assert "training_runs_" in plans
        assert "Seq Scan on training_runs" not in plans


def slowest_of_99_percent(stack, offer: str) -> float:
    """Return the processor time of a claim in milliseconds. The first claims are left out: they plan the queries."""
    call = f"select * from claim_training_run('w', gen_random_uuid(), 60, '{offer}')"
    return sorted(stack.postgres.processor_ms(call, 110)[10:])[98]


@pytest.fixture(params=[0, 500_000], ids=["no run can be served", "half of the runs can be served"])
def million_queued(supabase_lab, request):
    """Insert a million queued runs. Yield the lab and the number of runs that a worker can serve."""
    fill_queue(supabase_lab.stack, 1_000_000 - request.param, request.param)
    yield supabase_lab, request.param
    supabase_lab.stack.sql("truncate training_runs cascade;")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_claim_among_a_million_queued_runs_takes_at_most_50_ms(million_queued):
    lab, servable = million_queued
    # p99, or p50 while other programs keep the host busy, because they delay single claims
    which = 0 if os.getloadavg()[0] > (os.cpu_count() or 1) else 1
    rounds = [percentiles(in_database(lab.stack, workers=64, claims=20, offer=OFFER, rate=64)) for _ in range(3)]
    assert min(found[which] for found in rounds) <= 50, rounds
    running = "select count(*) || ' ' || count(distinct claim_id) from training_runs where status = 'running'"
    assert lab.stack.sql(running) == ("0 0" if not servable else f"{3 * 64 * 21} {3 * 64 * 21}")

    assert slowest_of_99_percent(lab.stack, OFFER) <= 50

    lab.stack.sql("update training_runs set status = 'completed' where status = 'running'")
    lab.stack.sql("delete from pg_statistic where starelid = 'training_runs'::regclass")  # as after a bulk load
    for call in (
        f"select * from claim_training_run('w', gen_random_uuid(), 60, '{OFFER}');",
        f"select * from peek_training_run('{OFFER}');",
    ):
        plans = lab.stack.postgres.plans(call)
        assert "training_runs_ready_idx" in plans
        assert "Seq Scan on training_runs" not in plans
        # the index still has entries of the runs that ended
        read = [int(rows) for rows in re.findall(r"(?:actual rows=|Removed by Filter: )(\d+)", plans)]
        assert max(read) <= 10_000, f"a node of a plan reads too many rows:\n{plans}"


@pytest.fixture
def refused(supabase_lab):
    """Add a rule of the app, so that the run with this name cannot be claimed."""
    supabase_lab.stack.sql(
        "alter table training_runs add constraint app_rule check (run_name || status <> 'refusedrunning')"
    )
    yield "refused"
    supabase_lab.stack.sql("truncate training_runs cascade; alter table training_runs drop constraint app_rule")


@pytest.mark.parametrize(("gpus", "memory"), [(8, 192), (16, 288)])
def test_claim_among_all_requirements_of_a_large_host_takes_at_most_50_ms(supabase_lab, refused, gpus, memory):
    supabase_lab.stack.sql(f"""
        set session_replication_role = replica;
        insert into training_runs (run_name, priority, needs_gpus, needs_gpu_memory_gb, created_at)
        select 'run', n % 3, gpus, memory, now() - n * interval '1 s'
        from generate_series(0, {gpus}) as gpus, generate_series(0, {memory}) as memory, generate_series(1, 10) as n;
        insert into training_runs (run_name, priority) values ('{refused}', 9);
        vacuum analyze training_runs;""")
    offer = f'{{"gpus": {gpus}, "gpu_memory_gb": {memory}}}'
    assert slowest_of_99_percent(supabase_lab.stack, offer) <= 50
    assert (
        supabase_lab.stack.sql("select count(*) from training_runs where status = 'running' and priority = 2") == "110"
    )
