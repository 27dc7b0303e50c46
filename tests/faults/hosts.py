"""Hosts with a worker: the real command with its own home and name, connected to the cloud under test."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.acceptance.service import COMMAND, Service
from tests.faults.cloud import wait_for
from trainer.core.run_folder import RunFolder

WITH_FAKE_TRAINING = [sys.executable, str(Path(__file__).with_name("service_with_fake_training.py"))]
LEASE = 3.0  # seconds


class Host(Service):
    """A host whose worker connects to `url`, such as a proxy. If `behavior` is None, it trains with Ultralytics."""

    def __init__(self, cloud, home: Path, behavior=None, url=None, **settings) -> None:
        settings = {
            "BACKEND": "supabase",
            "SUPABASE_URL": url or cloud.stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": cloud.key,
            "WORKER_ID": home.name,
            "EXTRA_DATASET_ROOTS": cloud.data.parent,
            "LEASE_SECONDS": LEASE,
            "CHECKPOINT_INTERVAL": 0.3,
            "ALLOW_WEIGHTS_DOWNLOAD": "0",
        } | settings
        super().__init__(home, behavior, **settings)
        self.command = COMMAND if behavior is None else WITH_FAKE_TRAINING
        self.cloud = cloud

    def training(self, seconds=20.0) -> psutil.Process:
        """Wait for a training process, and return it."""
        found: list[psutil.Process] = []
        wait_for(lambda: found.extend(self.trainings()) or bool(found), seconds, self.tail)
        return found[0]

    def trainings(self) -> list[psutil.Process]:
        """Return the training processes, oldest first. With WARM_START, the last one has no run yet."""
        return sorted((child for child in self.children() if _is_training(child)), key=psutil.Process.create_time)

    def subreapers(self) -> list[psutil.Process]:
        """Return the processes between the service and its trainings, oldest first: two for each training."""
        return sorted((child for child in self.children() if _is_subreaper(child)), key=psutil.Process.create_time)

    def children(self) -> list[psutil.Process]:
        try:
            return super().children()
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> list[psutil.Process]:
        """Kill the service with SIGKILL. Return the processes that it had started."""
        children = self.children()
        self.process.kill()
        self.process.wait()
        return children

    def kill_all(self) -> None:
        """Kill the service and all processes that it started, as a power cut does."""
        for child in self.kill():
            with suppress(psutil.NoSuchProcess):
                child.kill()
                child.wait(10)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def handles_sigterm(self) -> bool:
        """Return whether the process has installed its handler of SIGTERM."""
        caught = Path(f"/proc/{self.process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)

    def journals(self) -> list[Path]:
        return list((self.home / "journal").glob("*"))

    def run_dir(self, run_id: str, attempt=1) -> Path:
        """Return the folder in which an attempt trains."""
        return RunFolder.of(self.home / "runs", run_id, attempt).output.path

    def wait_idle(self, seconds=20.0, spares=0, torn=False) -> None:
        """I10: wait until no journal is left, and at most `spares` prestarted processes of each kind are running.

        A prestarted training process has two subreapers. The other kind waits for a dataset. If `torn` is true, journals that a crash of the host made unreadable can remain.
        """

        def is_idle() -> bool:
            journals = [path for path in self.journals() if not (torn and path.suffix == ".unreadable")]
            return not journals and len(self.children()) <= 4 * spares and len(self.trainings()) <= spares

        wait_for(is_idle, seconds, lambda: (self.journals(), self.children(), self.tail()))

    def tail(self) -> str:
        return self.log.read_text()[-3000:]

    def end(self) -> None:
        """Kill the service if it is still running, and wait at most 5 s for the end of its processes."""
        if self.process and self.process.poll() is None:
            children = self.children()
            self.process.kill()
            self.process.wait()
            for child in children:
                if child.is_running():
                    os.kill(child.pid, signal.SIGCONT)
            psutil.wait_procs(children, 5)


def _is_training(process: psutil.Process) -> bool:
    return any(part.endswith(("/fake_training.py", "trainer.training.child.main")) for part in _command(process)[1:3])


def _is_subreaper(process: psutil.Process) -> bool:
    return any(part.endswith("subreaper.py") for part in _command(process)[1:5])


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # the process has just ended
        return []


def gone(processes, seconds=5.0) -> bool:
    """Return whether all processes end within `seconds`."""
    return not psutil.wait_procs(processes, seconds)[1]
