"""Measure the CPU time of PostgreSQL for 1,000 busy workers: `python -m benchmarks.heartbeats [--tiny]`.

Each worker sends a heartbeat every 5 s through our adapter, PostgREST and PostgreSQL. Half of the heartbeats
contain progress. Only the CPU time of PostgreSQL is counted, because the clients and PostgREST run on other hosts in a
real project.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator

import psutil

from benchmarks.claim import adapters
from benchmarks.figures import Figure
from tests.supabase_stack import Stack, running_stack
from trainer.core.job import Job, Lease, RunRequest, Verdict
from trainer.core.progress import Progress
from trainer.jobs.supabase import SupabaseQueue

WORKERS = 1_000
EVERY = 5.0  # seconds between two heartbeats of a worker, the default of CANCEL_CHECK_INTERVAL
CONNECTIONS = 16


def fill(stack: Stack, workers: int) -> list[Lease]:
    """Insert one running run per worker."""
    stack.sql(f"""
        insert into trainer_workers (worker_id, status) select 'w' || n, 'busy' from generate_series(1, {workers}) n;
        insert into training_runs (id, run_name, status, attempt, worker_id, claim_id, lease_expires_at, started_at)
        select md5('run' || n)::uuid, 'run', 'running', 1, 'w' || n, md5('claim' || n)::uuid, now() + interval '1 h', now()
        from generate_series(1, {workers}) n;""")
    rows = stack.rows("select id, worker_id, claim_id from training_runs where status = 'running'")
    return [
        Lease(job=Job(id=row["id"], request=RunRequest(data_yaml=None), attempt=1), claim_id=row["claim_id"],
              worker_id=row["worker_id"], seconds=3600.0, trusted_until=0.0)
        for row in rows
    ]  # fmt: skip


def processor(pid: int) -> float:
    """Return the CPU seconds of a process, its living descendants and its ended children."""
    process = psutil.Process(pid)
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times) + times[0].children_user + times[0].children_system


def send_heartbeats(queues: list[SupabaseQueue], leases: list[Lease], rate: float, seconds: float) -> list[float]:
    """Send `rate` heartbeats per second for all leases in turn. Return the duration of each heartbeat in seconds."""
    progress = Progress()
    progress.expect(100)
    durations: list[float] = []
    started = time.perf_counter()

    def work(place: int) -> None:
        for n in range(place, int(rate * seconds), len(queues)):
            time.sleep(max(0.0, started + n / rate - time.perf_counter()))
            sent = time.perf_counter()
            is_second = n // len(leases) % 2
            verdict = queues[place].beat(leases[n % len(leases)], progress.as_json() if is_second else None, [])
            assert verdict is Verdict.OK
            durations.append(time.perf_counter() - sent)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(queues))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return durations


def figures(*, tiny: bool) -> Iterator[Figure]:
    workers, seconds = (20, 1.0) if tiny else (WORKERS, 4 * EVERY)
    rate = workers / EVERY
    with running_stack() as stack:
        leases = fill(stack, workers)
        with adapters(stack, CONNECTIONS) as queues:
            send_heartbeats(queues, leases, rate, 1.0)
            postgres = int((stack.postgres.folder / "data" / "postmaster.pid").read_text().split()[0])
            before, started = processor(postgres), time.monotonic()
            durations = sorted(send_heartbeats(queues, leases, rate, seconds))
            share = (processor(postgres) - before) / (time.monotonic() - started)
    yield Figure(
        what=f"heartbeats of {workers:,} busy workers, {rate:.0f} per second",
        target="PostgreSQL uses less than one CPU core",
        measured=f"{share:.0%} of a CPU core, p99 {durations[int(len(durations) * 0.99)] * 1000:.0f} ms",
        peer=f"one CPU core can process {len(durations) / (share * seconds) if share else 0:,.0f} heartbeats per second",
        met=share < 1.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    for figure in figures(tiny=parser.parse_args().tiny):
        print(figure.line())


if __name__ == "__main__":
    main()
