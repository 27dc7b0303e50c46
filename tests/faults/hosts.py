"""Hosts with a worker on them: the real command, with a home and a name of its own, on the cloud under test."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.acceptance.service import COMMAND, Service
from tests.faults.cloud import wait_for

STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]
LEASE = 3.0


class Host(Service):
    """`url` is where it reaches the cloud; through a proxy, say. `behavior=None` trains for real."""

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
        self.command = COMMAND if behavior is None else STAND_IN
        self.cloud = cloud

    def training(self, seconds=20.0) -> psutil.Process:
        """The training process itself, once there is one."""
        found: list[psutil.Process] = []
        wait_for(lambda: found.extend(self.trainings()) or bool(found), seconds, self.tail)
        return found[0]

    def trainings(self) -> list[psutil.Process]:
        """The oldest first: with WARM_START, a process that waits for the next run is younger than one that trains."""
        return sorted((child for child in self.children() if _is_training(child)), key=psutil.Process.create_time)

    def guardians(self) -> list[psutil.Process]:
        """The processes between the service and its trainings, the oldest first; each training has two."""
        return sorted((child for child in self.children() if _is_guardian(child)), key=psutil.Process.create_time)

    def children(self) -> list[psutil.Process]:
        try:
            return super().children()
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> list[psutil.Process]:
        """SIGKILL to the service alone; the processes that it had."""
        children = self.children()
        self.process.kill()
        self.process.wait()
        return children

    def kill_all(self) -> None:
        """SIGKILL to the service and to all that it started, as when the power fails."""
        for child in self.kill():
            with suppress(psutil.NoSuchProcess):
                child.kill()
                child.wait(10)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def hears_sigterm(self) -> bool:
        """Whether the process has come so far that it has a handler for it; before that it has nothing to end."""
        caught = Path(f"/proc/{self.process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)

    def journals(self) -> list[Path]:
        return list((self.home / "journal").glob("*"))

    def run_dir(self, run_id: str, attempt=1) -> Path:
        return self.home / "runs" / (f"train_{run_id}" + ("" if attempt == 1 else f"-{attempt}"))

    def wait_idle(self, seconds=20.0, spares=0, torn=False) -> None:
        """I10: no journal, and no process of a training but `spares` that wait for the next run.

        With `torn`, journals that a crash of the host made unreadable may lie aside.
        """

        def is_idle() -> bool:
            journals = [path for path in self.journals() if not (torn and path.suffix == ".unreadable")]
            return not journals and len(self.children()) <= 3 * spares and len(self.trainings()) <= spares

        wait_for(is_idle, seconds, lambda: (self.journals(), self.children(), self.tail()))

    def tail(self) -> str:
        return self.log.read_text()[-3000:]

    def end(self) -> None:
        """However it is: everything of it is gone afterwards."""
        if self.process and self.process.poll() is None:
            children = self.children()
            self.process.kill()
            self.process.wait()
            for child in children:
                if child.is_running():
                    os.kill(child.pid, signal.SIGCONT)
            psutil.wait_procs(children, 5)


def _is_training(process: psutil.Process) -> bool:
    return any(part.endswith(("trains_as_told.py", "trainer.training.child.main")) for part in _command(process)[1:3])


def _is_guardian(process: psutil.Process) -> bool:
    return any(part.endswith("subreaper.py") for part in _command(process)[1:5])


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def gone(processes, seconds=5.0) -> bool:
    """Whether they all end in time."""
    return not psutil.wait_procs(processes, seconds)[1]
