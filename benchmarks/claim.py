"""How long a claim takes with 32 workers on a table of 1,000,000 finished runs: `python -m benchmarks.claim`.

Three views of the same function: in the database alone (pgbench), through PostgREST and our adapter as fast as 32
workers can ask, and through both at a pace of one claim a second and worker, ten times what a daemon asks by default.
Everything shares this machine's cores.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.supabase_stack import Stack, running_stack
from trainer.core.ports import Worker
from trainer.jobs.supabase import SupabaseQueue
from trainer.remote.supabase import Project

WORKERS = 32
FINISHED = 1_000_000
CLAIMS = 30  # of each worker, per measurement


def main() -> None:
    with running_stack() as stack:
        began = time.monotonic()
        stack.sql(f"""
            insert into training_runs (run_name, status, configuration, created_at, completed_at, claim_id)
            select 'run', 'completed', '{{"epochs": 100}}', now() - n * interval '1 minute', now(), gen_random_uuid()
            from generate_series(1, {FINISHED}) as n;
            analyze training_runs;""")
        print(f"{FINISHED:,} finished runs loaded in {time.monotonic() - began:.0f} s; {WORKERS} workers, "
              f"{os.cpu_count()} cores\n")  # fmt: skip
        print(f"{'claims':<58} {'p50 ms':>8} {'p99 ms':>8} {'per second':>11}")
        report("in the database, each takes a run", stack, in_database, queued=True)
        report("in the database, nothing is queued", stack, in_database, queued=False)
        report("PostgREST and adapter, as fast as they can, runs", stack, as_fast_as_possible, queued=True)
        report("PostgREST and adapter, as fast as they can, nothing queued", stack, as_fast_as_possible, queued=False)
        report("PostgREST and adapter, one a second each, runs", stack, paced, queued=True)
        report("PostgREST and adapter, one a second each, nothing queued", stack, paced, queued=False)


def report(title: str, stack: Stack, measure: Callable[[Stack], list[float]], *, queued: bool) -> None:
    stack.sql("delete from training_runs where status in ('queued', 'running'); vacuum training_runs;")
    if queued:
        stack.sql(f"insert into training_runs (run_name) select 'run' from generate_series(1, {WORKERS * CLAIMS * 2})")
    began = time.monotonic()
    seconds = sorted(measure(stack))
    elapsed = time.monotonic() - began
    p50, p99 = (seconds[int(len(seconds) * share)] * 1000 for share in (0.5, 0.99))
    print(f"{title:<58} {p50:8.1f} {p99:8.1f} {len(seconds) / elapsed:11.0f}", flush=True)


def in_database(stack: Stack) -> list[float]:
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "claim.sql"
        script.write_text("select * from claim_training_run('w' || :client_id, gen_random_uuid(), 60);\n")
        subprocess.run(
            [stack.postgres.bin / "pgbench", "-n", "-h", "127.0.0.1", "-p", str(stack.postgres.port), "-U", "postgres",
             "-c", str(WORKERS), "-j", "2", "-t", str(CLAIMS), "-f", script, "-l", "--log-prefix", f"{name}/log", "app"],
            check=True, capture_output=True,
        )  # fmt: skip
        lines = [line for log in Path(name).glob("log*") for line in log.read_text().splitlines()]
    return [int(line.split()[2]) / 1e6 for line in lines]  # the third column is in microseconds


def as_fast_as_possible(stack: Stack) -> list[float]:
    return through_the_adapter(stack, every=0.0)


def paced(stack: Stack) -> list[float]:
    return through_the_adapter(stack, every=1.0)


@contextlib.contextmanager
def adapters(stack: Stack) -> Iterator[list[SupabaseQueue]]:
    with contextlib.ExitStack() as opened:
        projects = [opened.enter_context(Project(stack.url, stack.service_key)) for _ in range(WORKERS)]
        queues = [SupabaseQueue(project) for project in projects]
        for queue in queues:
            queue.check()  # connected, as a daemon is
        yield queues


def through_the_adapter(stack: Stack, every: float) -> list[float]:
    seconds: list[float] = []

    def work(n: int, queue: SupabaseQueue) -> None:
        time.sleep(every * n / WORKERS)
        for _ in range(CLAIMS if not every else 10):
            began = time.perf_counter()
            queue.claim(Worker(id=f"w{n}"), str(uuid.uuid4()), 60.0)
            seconds.append(time.perf_counter() - began)
            time.sleep(max(0.0, every - (time.perf_counter() - began)))

    with adapters(stack) as queues:
        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(queues)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return seconds


if __name__ == "__main__":
    main()
