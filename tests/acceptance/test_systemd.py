"""The service under a fake systemd: notify socket, watchdog and signals. systemd-analyze checks the units."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.acceptance.service import Service
from trainer.demo import draw_dataset
from trainer.systemd import ServiceManager
from trainer.worker.liveness import Liveness

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.fixture
def manager(tmp_path):
    """The notify socket of systemd. `receives` waits some seconds for a message."""

    class Manager:
        address = str(tmp_path / "notify")

        def __init__(self):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.bind(self.address)
            self.received = []

        def receives(self, wanted, seconds=20):
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if any(wanted in message for message in self.received):
                    return True
                self.socket.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    self.received.append(self.socket.recv(4096).decode())
                except TimeoutError:
                    return False
            return False

    manager = Manager()
    yield manager
    manager.socket.close()


@pytest.fixture
def start(tmp_path, manager):
    started = []

    def start(behavior, **settings):
        service = Service(tmp_path / "home", behavior, **settings)
        service.environment |= {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "4000000"}
        started.append(service.start())
        return service

    yield start
    for service in started:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def test_service_sends_ready_watchdog_and_stopping_messages(start, manager):
    service = start({})

    assert manager.receives("READY=1")
    assert "STATUS=0 of 1 slots busy" in manager.received[0]
    assert manager.receives("WATCHDOG=1")

    assert service.stop() == 0
    assert manager.receives("STOPPING=1")
    assert sum("READY=1" in message for message in manager.received) == 1


def test_watchdog_is_notified_during_training_and_sigterm_requeues_run(start, manager, tmp_path):
    service = start({"seconds_per_epoch": 0.5})
    run_id = service.enqueue(draw_dataset(tmp_path / "data", images=5, size=64), epochs=100)
    service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)
    assert manager.receives("STATUS=1 of 1 slots busy")
    manager.received.clear()

    assert manager.receives("WATCHDOG=1")
    assert service.stop(signal.SIGTERM) == 0
    assert service.row(run_id)["status"] == "queued"


def test_suspended_service_does_not_notify_watchdog(start, manager):
    service = start({})
    assert manager.receives("WATCHDOG=1")

    service.process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    while manager.receives("WATCHDOG=1", seconds=0.1):
        manager.received.clear()
    notified_while_suspended = manager.receives("WATCHDOG=1", seconds=3)
    service.process.send_signal(signal.SIGCONT)

    assert not notified_while_suspended
    assert manager.receives("WATCHDOG=1")


def test_one_stuck_loop_stops_watchdog_notifications():
    liveness = Liveness()
    with liveness.watching("claims"), liveness.watching("a run"):
        time.sleep(0.05)
        liveness.mark("claims")
        assert not liveness.is_alive(within=0.04)
        liveness.mark("a run")
        assert liveness.is_alive(within=5)


def test_ended_loop_does_not_stop_watchdog_notifications():
    liveness = Liveness()
    with liveness.watching("a run"):
        pass
    time.sleep(0.02)

    assert liveness.is_alive(within=0.01)


def test_nothing_is_sent_without_systemd():
    manager = ServiceManager(None)

    manager.ready_and("x")
    manager.stopping()
    with manager.watchdog(None, lambda seconds: True):
        pass


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@needs_systemd
@pytest.mark.parametrize("unit", ["yolo-trainer.service", "yolo-trainer@.service"])
def test_unit_has_low_exposure_level(unit):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(UNITS / unit)], capture_output=True, text=True, check=False,
    )  # fmt: skip

    score = re.search(r"Overall exposure level.*?: (\d+\.\d+)", done.stdout)
    assert score, done.stderr
    assert float(score.group(1)) <= 2.5


@pytest.mark.parametrize("unit", ["yolo-trainer.service", "yolo-trainer@.service"])
def test_unit_allows_the_sandbox_of_training_processes(unit):
    """The unit must list the system calls of the sandbox, because no filter set of systemd 252 contains them.

    If several filters name a system call, the last one has priority.
    """
    filters = re.findall(r"^SystemCallFilter=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)

    allowed = {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp"}
    assert allowed <= set(filters[-1].split())
    assert filters[0] == "@system-service"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare, to mount")
@pytest.mark.parametrize("unit", ["yolo-trainer.service", "yolo-trainer@.service"])
def test_temporary_file_system_of_unit_can_be_mounted(tmp_path, unit):
    """The kernel gets these options as they are: `%%` does not stand for `%`, as in other settings."""
    options = re.search(r"^TemporaryFileSystem=/dev/shm:(.+)$", (UNITS / unit).read_text(), re.MULTILINE)[1]

    mount = ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
    subprocess.run(mount, check=True)


@needs_systemd
@pytest.mark.parametrize("unit", ["yolo-trainer.service", "yolo-trainer@.service"])
def test_units_are_valid(tmp_path, unit):
    """Only the path of the interpreter is replaced, because it does not exist here."""
    name = unit.replace("@.", "@a.")
    text = (UNITS / unit).read_text()
    (tmp_path / name).write_text(text.replace("/opt/yolo-trainer/.venv/bin/python", "/usr/bin/env"))

    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stop_timeout_is_longer_than_drain():
    """After the drain, the service waits a limited time for its threads, reporters and prestarted process."""
    from trainer.settings import Settings
    from trainer.training.supervisor.process_tree import _KILL_SECONDS
    from trainer.wiring.service import REPORTERS_CLOSE
    from trainer.worker.daemon import LAST_DELIVERY
    from trainer.worker.health import LAST_TEST
    from trainer.worker.housekeeping import LAST_CHORE

    drain = Settings.model_fields["drain_seconds"].default
    closing = LAST_DELIVERY + LAST_TEST + LAST_CHORE + REPORTERS_CLOSE + 2 * _KILL_SECONDS
    for unit in UNITS.glob("*.service"):
        timeout = re.search(r"TimeoutStopSec=(\d+)", unit.read_text())
        assert int(timeout.group(1)) > drain + closing


def test_units_and_their_environment_file_set_different_settings():
    """The file has priority over a unit, so the installation removes the settings of the units from the file."""
    units = [path.read_text() for path in UNITS.glob("*.service")]
    lines = re.findall(r"^Environment=(.+)$", "\n".join(units), re.MULTILINE)
    removed = re.search(r"sed -i -E '/\^\(([A-Z_|]+)\)=/d'", (UNITS / "README.md").read_text())

    assert removed
    assert set(removed[1].split("|")) == {pair.split("=")[0] for line in lines for pair in line.split()}
