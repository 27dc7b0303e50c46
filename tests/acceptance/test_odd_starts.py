"""The command works, or fails with an error of one line, in an unusual environment.

For example, it has closed standard streams, no home, a broken `.env`, or an unusable notify socket.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.acceptance.service import COMMAND, Service
from trainer.demo import draw_dataset

WITHOUT_STREAMS = {"stderr": "2>&-", "output": ">&- 2>&-", "all": "<&- >&- 2>&-"}
# this user has no passwd entry and so no home, but can read files in /root
UNKNOWN_USER = [
    "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override",
]  # fmt: skip
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "home", {})
    yield service
    if service.process and service.process.poll() is None:
        service.process.kill()
        service.process.wait()


def wait_until(holds, seconds=15):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds()


def refused(service, *arguments, **environment):
    """Run a command that fails; return its only line on stderr and its exit code."""
    service.environment |= environment
    done = service.run(*arguments, check=False)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line, done.returncode


# ── closed streams ──


@pytest.mark.parametrize("closed", WITHOUT_STREAMS.values(), ids=WITHOUT_STREAMS)
def test_service_trains_with_closed_standard_streams(service, tmp_path, closed):
    data = draw_dataset(tmp_path / "data", images=5, size=64)
    run_id = service.enqueue(data, epochs=2)
    service.command = ["sh", "-c", f'exec "$@" {closed}', "sh", *service.command]
    service.start()

    row = service.wait(run_id, "completed", "failed")
    held = [os.readlink(f"/proc/{service.process.pid}/fd/{number}") for number in (0, 1, 2)]

    assert row["status"] == "completed", row["error_message"]
    assert [name for name in held if name not in ("/dev/null", str(service.log)) and not name.startswith("pipe:")] == []
    assert service.stop() == 0


@pytest.mark.parametrize("closed", WITHOUT_STREAMS.values(), ids=WITHOUT_STREAMS)
@pytest.mark.parametrize(("arguments", "code"), [("status", 0), ("status no-such-run", 1)])
def test_command_has_usual_exit_code_with_closed_standard_streams(service, closed, arguments, code):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, *arguments.split()]

    done = subprocess.run(
        command, env=service.environment, cwd=service.home, capture_output=True, text=True, check=False
    )

    assert done.returncode == code
    assert "Traceback" not in done.stderr


# ── a user without a home ──


@needs_root
@pytest.mark.parametrize("arguments", [[], ["status"]], ids=["the service", "a command"])
def test_user_without_home_gets_error_about_trainer_home(service, arguments):
    del service.environment["HOME"], service.environment["TRAINER_HOME"]
    done = subprocess.run(
        [*UNKNOWN_USER, *COMMAND, *arguments], env=service.environment, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip

    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "TRAINER_HOME" in line
    assert "set it to a path that starts with /" in line


@needs_root
def test_user_without_passwd_entry_trains_with_trainer_home():
    # other users cannot read pytest's folders
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder, "home"), {})
        run_id = service.enqueue(draw_dataset(Path(folder, "data"), images=5, size=64), epochs=2)
        subprocess.run(["chown", "-R", "54321:54321", folder], check=True)
        del service.environment["HOME"]
        service.command = [*UNKNOWN_USER, *service.command]
        service.start()
        try:
            row = service.wait(run_id, "completed", "failed")

            assert row["status"] == "completed", row["error_message"]
            assert service.stop() == 0
        finally:
            service.process.kill()


def test_relative_folder_in_deleted_working_directory_is_one_line_error(service, tmp_path):
    command = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh", *COMMAND, "status"]
    environment = service.environment | {"RUNS_DIR": "runs"}

    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: RUNS_DIR")


# ── a broken .env ──


@pytest.mark.parametrize("arguments", [[], ["status"]], ids=["the service", "a command"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfeB\x00A\x00C\x00K\x00E\x00N\x00D\x00", "utf-8"),
        (b"WORKER_ID=gpu-\xe9\n", "utf-8"),
        (b"\x7fELF\x02\x01\x01\x00\x00\x00\x00", "NUL"),
        (b"WORKER_ID=a\0b\n", "NUL"),
        (os.urandom(4096) + b"\xff", "cannot be read"),
    ],
    ids=["UTF-16", "Latin-1", "a program", "a NUL byte", "random bytes"],
)
def test_binary_environment_file_is_one_line_error(service, arguments, content, says):
    (service.home / ".env").write_bytes(content)

    line, code = refused(service, *arguments)

    assert code == 2
    assert line.startswith("error: .env")
    assert says in line


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir(), "it is not a regular file"),
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
    ],
    ids=["folder", "pipe", "dangling link"],
)
def test_environment_file_of_wrong_type_is_one_line_error(service, make, says):
    make(service.home / ".env")

    line, code = refused(service, "status")

    assert code == 2
    assert says in line


@needs_root
def test_unreadable_environment_file_is_one_line_error(service):
    (service.home / ".env").touch(0o000)
    reader = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *COMMAND]

    done = subprocess.run(
        [*reader, "status"], env=service.environment, cwd=service.home, capture_output=True, text=True, check=False,
    )  # fmt: skip

    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "Permission denied" in line


def test_environment_file_with_byte_order_mark_is_read(service):
    (service.home / ".env").write_bytes(b"\xef\xbb\xbfSLOTS=many\n")

    line, code = refused(service, "status")

    assert code == 2
    assert line.startswith("error: SLOTS='many'")


def test_dev_null_as_environment_file_is_accepted(service):
    (service.home / ".env").symlink_to(os.devnull)

    assert service.json("status") == {"runs": [], "workers": []}


# ── systemd's socket ──


def unusable_sockets(folder):
    file, closed = folder / "file", folder / "closed"
    file.touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(closed))
    return {
        "missing": str(folder / "missing"),
        "relative": "notify",
        "file": str(file),
        "too long": f"/{'x' * 300}",
        "closed": str(closed),
    }


@pytest.mark.parametrize("kind", ["missing", "relative", "file", "too long", "closed"])
def test_unusable_notify_socket_does_not_stop_service(service, tmp_path, kind):
    service.environment |= {"NOTIFY_SOCKET": unusable_sockets(tmp_path)[kind], "WATCHDOG_USEC": "400000"}
    service.start()
    wait_until(lambda: any("systemd cannot be notified" in line["event"] for line in service.lines()))
    run_id = service.enqueue(draw_dataset(tmp_path / "data", images=5, size=64), epochs=1)

    service.wait(run_id, "completed")

    assert [line["event"] for line in service.lines()].count(
        "systemd cannot be notified, continuing without notifications"
    ) == 1
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def test_full_notify_socket_does_not_block_service(service, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "notify"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.connect(str(tmp_path / "notify"))
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(100_000):
                    filler.send(b"x")
        service.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        service.start()
        run_id = service.enqueue(draw_dataset(tmp_path / "data", images=5, size=64), epochs=1)

        service.wait(run_id, "completed")

        assert service.stop() == 0


def test_ready_message_is_repeated_until_systemd_receives_it(service, tmp_path):
    address = tmp_path / "notify"
    service.environment["NOTIFY_SOCKET"] = str(address)
    service.start()
    wait_until(lambda: any("systemd cannot be notified" in line["event"] for line in service.lines()))

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(10)

        assert manager.recv(4096).startswith(b"READY=1")
        assert manager.recv(4096).startswith(b"STATUS=")


@pytest.mark.parametrize("watchdog", ["soon", "0"])
def test_invalid_watchdog_time_is_ignored(service, watchdog):
    service.environment["WATCHDOG_USEC"] = watchdog
    service.start()
    wait_until((service.home / "queue.db").exists)
    time.sleep(0.5)

    assert psutil.Process(service.process.pid).cpu_percent(0.5) < 60
    assert service.stop(signal.SIGTERM) == 0
