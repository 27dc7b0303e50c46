"""The pipes of the real training process before a training: the end of stdin, and an invalid command."""

import os
import subprocess
import sys

import pytest

from trainer.training.supervisor.environment import child_environment, private_folder


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the real training process with pipes for stdin, events and output."""
    started = []

    def starting():
        folder = private_folder(tmp_path, tmp_path / "weights")
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.training.child.main", "--events-fd", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
            env=child_environment(dict(os.environ), folder, devices=None),
        )
        os.close(writing)
        events = os.fdopen(reading, "rb")
        started.append((process, events))
        return process, events

    yield starting
    for process, events in started:
        process.kill()
        process.communicate()
        events.close()


def test_prestarted_process_exits_at_end_of_stdin(start):
    process, events = start()
    process.stdin.close()
    process.stdin = None

    assert process.wait(60) == 0
    assert events.read() == b""


def test_process_exits_with_code_2_after_invalid_command(start):
    process, _ = start()
    output, _ = process.communicate(b'{"kind": "dance"}\n', timeout=60)

    assert process.returncode == 2
    assert b"WireError" in output
