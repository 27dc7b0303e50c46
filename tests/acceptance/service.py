"""Run the real command as a process, with a fake or a real training."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "trainer_service.py")]
WITH_FAKE_TRAINING = [sys.executable, str(ROOT / "tests" / "acceptance" / "service_with_fake_training.py")]


class Service:
    """A service process and its commands. `home` is TRAINER_HOME, and `settings` are its environment variables.

    `behavior`: the options of the fake training, or None for a real training.
    """

    def __init__(self, home: Path, behavior=None, **settings):
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.command = COMMAND if behavior is None else WITH_FAKE_TRAINING
        if behavior is not None:
            self.behave(**behavior)
        self.log = home / "service.log"
        inherited = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ
        }
        self.environment = {
            **inherited,
            "BACKEND": "local",
            "TRAINER_HOME": str(home),
            "POLL_INTERVAL": "0.2",
            "PROGRESS_INTERVAL": "0.2",
            "HEARTBEAT_INTERVAL": "0.2",
            "CANCEL_CHECK_INTERVAL": "0.2",
            "LEASE_SECONDS": "3",
            "CANCEL_GRACE": "2",
            "DRAIN_SECONDS": "10",
            "WARM_START": "0",
            "LOG_FORMAT": "json",
        } | {name: str(value) for name, value in settings.items()}
        self.process = None

    def behave(self, **options):
        (self.home / "behavior.json").write_text(json.dumps(options))

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log, cwd=self.home)
        return self

    def run(self, *arguments, check=True):
        """Run one command and wait for its end."""
        return subprocess.run(
            [*COMMAND, *arguments], env=self.environment, cwd=self.home, capture_output=True, text=True, check=check,
        )  # fmt: skip

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--json").stdout)

    def enqueue(self, data, **configuration):
        return self.json(
            "enqueue", "--data", str(data), "--model", "yolo11n.yaml", "--config", json.dumps(configuration)
        )["id"]

    def insert(self, data, **configuration):
        """Insert a run directly into the queue, even a run that `enqueue` refuses."""
        from trainer.core.job import RunRequest
        from trainer.jobs.sqlite import SqliteQueue

        request = RunRequest(data_yaml=str(data), configuration=configuration)
        return SqliteQueue(self.home / "queue.db").enqueue(request)

    def row(self, run_id):
        return self.json("status", run_id)

    def wait(self, run_id, *statuses, seconds=60):
        """Wait until the run has one of the statuses, and return its row."""
        return self.wait_until(run_id, lambda row: row["status"] in statuses, seconds)

    def wait_until(self, run_id, holds, seconds=60):
        from trainer.jobs.sqlite import SqliteQueue

        queue = SqliteQueue(self.home / "queue.db")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = queue.get(run_id)
            row = found and asdict(found)
            if row and holds(row):
                return row
            time.sleep(0.1)
        raise AssertionError(f"after {seconds} s the row is {row}\n{self.log.read_text()[-4000:]}")

    def stop(self, number=signal.SIGTERM, seconds=30):
        """Send a signal, wait for the end of the service, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def children(self):
        import psutil

        return psutil.Process(self.process.pid).children(recursive=True)

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextmanager
def running(home: Path, behavior=None, **settings):
    service = Service(home, behavior, **settings).start()
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()
