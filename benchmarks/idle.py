"""What the service costs while there is nothing to do: `python -m benchmarks.idle`.

Prints the seconds from the start of the command to its first claim, the resident memory, and the share of a core that
an idle minute takes, on the embedded queue.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil

from benchmarks.figures import Figure

ROOT = Path(__file__).parents[1]


def figures(*, tiny: bool, seconds: float = 60.0) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"BACKEND": "local", "TRAINER_HOME": home, "WARM_START": "0", "LOG_LEVEL": "ERROR"}
        began = time.monotonic()
        service = subprocess.Popen([sys.executable, str(ROOT / "trainer_service.py")], env=environment)
        try:
            claiming = first_claim(Path(home) / "queue.db", began)
            process = psutil.Process(service.pid)
            share = processor(process, 1.0 if tiny else seconds)
            memory = process.memory_info().rss / 2**20
        finally:
            service.terminate()
            service.wait()
    yield Figure(
        what="idle worker",
        target="≤ 80 MiB, ≤ 0.5 % of a core",
        measured=f"{memory:.0f} MiB, {share:.2%} of a core, claims {claiming:.2f} s after its start",
        met=memory <= 80 and share <= 0.005,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to watch the idle service")
    parser.add_argument("--tiny", action="store_true", help="once, small: only to see that it works")
    options = parser.parse_args()
    for figure in figures(tiny=options.tiny, seconds=options.seconds):
        print(figure.line())


def first_claim(queue: Path, began: float) -> float:
    """Seconds until the worker reported itself, which it does with its first claim."""
    while True:
        if queue.exists():
            with closing(sqlite3.connect(queue)) as db:
                try:
                    if db.execute("select count(*) from trainer_workers").fetchone()[0]:
                        return time.monotonic() - began
                except sqlite3.OperationalError:
                    pass  # the tables are being made
        time.sleep(0.01)


def processor(process: psutil.Process, seconds: float) -> float:
    """The share of a core that a process uses in the next so many seconds."""
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return max(0.0, after.user + after.system - before.user - before.system) / seconds


if __name__ == "__main__":
    main()
