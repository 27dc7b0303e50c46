"""Signals that stop the service. tests/acceptance/test_service_stops.py tests the drain with real services."""

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
def test_after_drain_sighup_is_ignored_and_sigterm_ends_the_process(late, code):
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


def test_simultaneous_sigterm_and_sighup_start_drain_and_sigint_exits():
    done = subprocess.run(
        [sys.executable, "-c", PENDING], check=False, timeout=30, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "draining\n")
