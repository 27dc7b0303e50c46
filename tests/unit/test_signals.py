"""What the signals do that end the service; the drain itself is tested with real services (acceptance/test_service.py)."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from trainer.core.stop import StopSignal
from trainer.signals import signals_set
stop = StopSignal()
with signals_set(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.must_stop
os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.mark.parametrize(("late", "code"), [(signal.SIGHUP, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_sighup_after_the_drain_does_not_change_the_exit_code(late, code):
    assert subprocess.run([sys.executable, "-c", PROGRAM, str(int(late))], check=False, timeout=30).returncode == code


PENDING = """
import os, signal
from trainer.core.stop import StopSignal
from trainer.signals import signals_set
stop = StopSignal()
with signals_set(stop):
    numbers = [signal.SIGTERM, signal.SIGHUP]
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    assert stop.must_stop
    print("draining", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_sigterm_and_sighup_at_the_same_time_drain_and_second_request_exits():
    done = subprocess.run(
        [sys.executable, "-c", PENDING], check=False, timeout=30, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "draining\n")
