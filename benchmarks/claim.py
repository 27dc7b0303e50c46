"""Measure the time of a claim among 1,000,000 finished or queued runs: `python -m benchmarks.claim [--tiny]`.

First, pgbench calls the claim function directly in the database. Then 32 workers claim runs through PostgREST and our
adapter: first with one claim per second and worker, then without pauses. One claim per second is ten times the default
rate of a worker. All processes share the cores of this host.

At last, 64 workers claim runs directly in the database among 1,000,000 queued runs that they cannot serve, and among
500,000 such runs that have a higher priority than 500,000 runs that they can serve.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from tests.supabase_stack import Stack, running_stack
from trainer.core.ports import Worker
from trainer.jobs.supabase import SupabaseQueue
from trainer.remote.supabase import Project

WORKERS = 32
FINISHED = 1_000_000
CLAIMS = 30  # claims of each worker per measurement
QUEUED = 1_000_000
OFFER = '{"gpus": 1, "gpu_memory_gb": 23.6}'


def figures(*, tiny: bool) -> Iterator[Figure]:
    workers, finished, claims = (4, 1_000, 3) if tiny else (WORKERS, FINISHED, CLAIMS)
    with running_stack() as stack:
        empty = percentiles(in_database(stack, workers, claims))
        fill(stack, finished)
        for queued in (True, False):
            what = "each claim takes a run" if queued else "no run is queued"
            insert(stack, workers * (claims + 1) * 3 if queued else 0)
            alone = percentiles(in_database(stack, workers, claims))
            with adapters(stack, workers) as queues:
                paced, taken = through_adapters(queues, claims // 3, every=1.0)
                unpaced, more = through_adapters(queues, claims, every=0.0)
            taken += more
            p50, p99 = percentiles(paced)
            double = len(taken) - len(set(taken))
            yield Figure(
                what=f"claim by {workers} workers, one claim per second and worker, {finished:,} finished runs, {what}",
                target="p99 ≤ 50 ms, no double claim",
                measured=f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, {double} double claims",
                peer=f"pgbench directly in the database, without pauses: p50 {alone[0]:.0f} ms, p99 {alone[1]:.0f} ms (empty table: "
                f"{empty[0]:.0f} ms, {empty[1]:.0f} ms); adapters without pauses: p99 {percentiles(unpaced)[1]:.0f} ms",
                met=p99 <= 50 and not double,
                why="32 clients, their gateway, PostgREST and PostgreSQL share two cores here",
            )
        for servable in (0, 0.5):
            yield among_queued_runs(stack, *((1_000, 2, 3) if tiny else (QUEUED, 64, CLAIMS)), servable)


def among_queued_runs(stack: Stack, queued: int, workers: int, claims: int, servable: float) -> Figure:
    fill_queue(stack, queued - int(queued * servable), int(queued * servable))
    p50, p99 = percentiles(in_database(stack, workers, claims, offer=OFFER, rate=workers))
    return Figure(
        what=f"claim by {workers} workers, one claim per second and worker, {queued:,} queued runs, of which {servable:.0%} can be served",
        target="p99 ≤ 50 ms",
        measured=f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        peer="",
        met=p99 <= 50,
        why="64 clients and PostgreSQL share two cores here",
    )


def fill_queue(stack: Stack, unservable: int, servable: int) -> None:
    """Replace the queue. The runs that `OFFER` cannot serve have the highest priority, and many different requirements."""
    # without triggers, because an insert of a million rows with them takes minutes
    stack.sql(f"""
        truncate training_runs cascade;
        set session_replication_role = replica;
        insert into training_runs (run_name, priority, configuration, needs_gpus, needs_gpu_memory_gb, not_before, created_at)
        select 'run', n % 3, jsonb_build_object('requires', jsonb_build_object('gpus', gpus, 'gpu_memory_gb', memory)),
          gpus, memory, case when n % 5 = 0 then now() + interval '1 hour' end, now() - n * interval '1 s'
        from (
          select n, case n % 5 when 0 then 0 when 1 then 0 when 2 then 1 else 2 + n % 50 end as gpus,
            case n % 5 when 0 then 0 else 25 + n % 100000 end as memory
          from generate_series(1, {unservable}) as n
        ) as needs;
        insert into training_runs (run_name, priority, needs_gpus, needs_gpu_memory_gb, created_at)
        select 'run', -1, n % 2, n % 25, now() - n * interval '1 s' from generate_series(1, {servable}) as n;
        vacuum analyze training_runs;""")


def fill(stack: Stack, finished: int) -> None:
    stack.sql(f"""
        insert into training_runs (run_name, status, configuration, created_at, completed_at, claim_id)
        select 'run', 'completed', '{{"epochs": 100}}', now() - n * interval '1 minute', now(), gen_random_uuid()
        from generate_series(1, {finished}) as n;
        analyze training_runs;""")


def insert(stack: Stack, count: int) -> None:
    stack.sql(f"""
        delete from training_runs where status in ('queued', 'running');
        vacuum training_runs;
        insert into training_runs (run_name) select 'run' from generate_series(1, {count})""")


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000


def in_database(
    stack: Stack, workers: int, claims: int, *, offer: str = "{}", rate: float | None = None
) -> list[float]:
    """Return the seconds of each claim. `rate` is the number of claims per second; None sends them without pauses.

    The first claim of each connection is left out, because it also plans the queries. PostgREST keeps its connections.
    """
    paced = [] if rate is None else ["-R", str(rate)]
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "claim.sql"
        script.write_text(f"select * from claim_training_run('w' || :client_id, gen_random_uuid(), 3600, '{offer}');\n")
        subprocess.run(
            [stack.postgres.bin / "pgbench", "-n", "-h", "127.0.0.1", "-p", str(stack.postgres.port), "-U", "postgres",
             "-c", str(workers), "-j", "2", "-t", str(claims + 1), *paced, "-f", script, "-l", "--log-prefix", f"{name}/log", "app"],
            check=True, capture_output=True,
        )  # fmt: skip
        lines = [line.split() for log in Path(name).glob("log*") for line in log.read_text().splitlines()]
    by_client: dict[str, list[float]] = defaultdict(list)
    for client, _, microseconds, *_ in lines:
        by_client[client].append(int(microseconds) / 1e6)
    return [seconds for claimed in by_client.values() for seconds in claimed[1:]]


@contextlib.contextmanager
def adapters(stack: Stack, count: int) -> Iterator[list[SupabaseQueue]]:
    """Yield `count` queues. Each has an open connection, like the queue of a worker."""
    with contextlib.ExitStack() as opened:
        projects = [opened.enter_context(Project(stack.url, stack.service_key)) for _ in range(count)]
        queues = [SupabaseQueue(project) for project in projects]
        for queue in queues:
            queue.check()
        yield queues


def through_adapters(queues: list[SupabaseQueue], claims: int, every: float) -> tuple[list[float], list[str]]:
    """Send `claims` claims per queue, one every `every` seconds. Return the seconds of each claim, and the run IDs."""
    seconds: list[float] = []
    taken: list[str] = []

    def work(n: int, queue: SupabaseQueue) -> None:
        time.sleep(every * n / len(queues))
        for _ in range(claims):
            started = time.perf_counter()
            lease = queue.claim(Worker(id=f"w{n}"), str(uuid.uuid4()), 60.0)
            seconds.append(time.perf_counter() - started)
            if lease:
                taken.append(lease.job.id)
            time.sleep(max(0.0, every - (time.perf_counter() - started)))

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(queues)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    for figure in figures(tiny=parser.parse_args().tiny):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
