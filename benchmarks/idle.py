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
from contextlib import closing
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to watch the idle service")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"BACKEND": "local", "TRAINER_HOME": home, "WARM_START": "0", "LOG_LEVEL": "ERROR"}
        began = time.monotonic()
        service = subprocess.Popen([sys.executable, str(ROOT / "trainer_service.py")], env=environment)
        try:
            print(f"claiming after       {first_claim(Path(home) / 'queue.db', began):6.2f} s")
            report(psutil.Process(service.pid), arguments.seconds)
        finally:
            service.terminate()
            service.wait()


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


def report(process: psutil.Process, seconds: float) -> None:
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    print(f"resident memory      {process.memory_info().rss / 2**20:6.1f} MiB")
    print(f"processor            {100 * used / seconds:6.2f} % of a core")
    print(f"threads              {process.num_threads():6d}")


if __name__ == "__main__":
    main()
