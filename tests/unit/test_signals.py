"""Signals that stop the service. acceptance/test_service.py tests the drain with real services."""

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
