"""Measure the cost of an idle service: `python -m benchmarks.idle`.

With the local queue, it measures the seconds from the start to the first claim, the resident memory and the share of a
CPU core. With Supabase (real PostgreSQL and PostgREST), it measures the resident memory, the requests and the share of a
CPU core.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil

from benchmarks.figures import Figure
from tests.supabase_stack import Stack, running_stack

ROOT = Path(__file__).parents[1]


POLL = 1.0  # seconds between two claims with Supabase; a tenth of the default


def figures(*, tiny: bool, seconds: float = 60.0) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as home, running(home, BACKEND="local") as (process, started):
        claiming = first_claim(Path(home) / "queue.db", started)
        share = processor(process, 1.0 if tiny else seconds)
        memory = process.memory_info().rss / 2**20
    yield Figure(
        what="idle worker",
        target="≤ 80 MiB, ≤ 0.5 % of a CPU core",
        measured=f"{memory:.0f} MiB, {share:.2%} of a CPU core, first claim {claiming:.2f} s after the start",
        met=memory <= 80 and share <= 0.005,
    )
    polls = 3 if tiny else 30
    with running_stack() as stack, tempfile.TemporaryDirectory() as home:
        supabase = {
            "BACKEND": "supabase",
            "SUPABASE_URL": stack.gateway.url,
            "SUPABASE_SERVICE_ROLE_KEY": stack.service_key,
        }
        with running(home, **supabase, POLL_INTERVAL=str(POLL)) as (process, _):
            while not claims(stack):
                time.sleep(0.05)
            stack.gateway.requests.clear()
            share = processor(process, polls * POLL)
            memory, requests, claimed = process.memory_info().rss / 2**20, len(stack.gateway.requests), claims(stack)
    yield Figure(
        what="idle worker with Supabase",
        target="≤ 80 MiB, ≤ 1 request per poll interval",
        measured=f"{memory:.0f} MiB, {requests} requests in {polls} intervals of {POLL:g} s, {claimed} of them claims; "
        f"{share:.2%} of a CPU core",
        met=memory <= 80 and requests == claimed <= polls * 1.1 + 1,
        why="the worker also sent requests that are not claims" if requests != claimed else "",
    )


@contextmanager
def running(home: str, **settings: str) -> Iterator[tuple[psutil.Process, float]]:
    """Start the service without a prestarted process. Yield the process of the service and its start time."""
    environment = os.environ | {"TRAINER_HOME": home, "WARM_START": "0", "LOG_LEVEL": "ERROR"} | settings
    started = time.monotonic()
    service = subprocess.Popen([sys.executable, str(ROOT / "trainer_service.py")], env=environment, cwd=home)
    try:
        yield psutil.Process(service.pid), started
    finally:
        service.terminate()
        service.wait()


def claims(stack: Stack) -> int:
    return sum("claim_training_run" in path for _, path, _ in stack.gateway.requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="seconds of the CPU measurement with the local queue")
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    options = parser.parse_args()
    for figure in figures(tiny=options.tiny, seconds=options.seconds):
        print(figure.line())


def first_claim(queue: Path, started: float) -> float:
    """Return the seconds until the first claim, which registers the worker."""
    while True:
        if queue.exists():
            with closing(sqlite3.connect(queue)) as db:
                try:
                    if db.execute("select count(*) from trainer_workers").fetchone()[0]:
                        return time.monotonic() - started
                except sqlite3.OperationalError:
                    pass  # the tables do not exist yet
        time.sleep(0.01)


def processor(process: psutil.Process, seconds: float) -> float:
    """Return the share of a CPU core that a process uses during the next `seconds`."""
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return max(0.0, after.user + after.system - before.user - before.system) / seconds


if __name__ == "__main__":
    main()
