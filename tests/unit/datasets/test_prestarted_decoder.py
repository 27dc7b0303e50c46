"""The prestarted process for the next dataset."""

import os
import time

import pytest

from tests.unit.worker.harness import wait_for
from trainer.core.errors import MachineFailed
from trainer.core.stop import StopSignal
from trainer.datasets.confined.process import ConfinedDecoder
from trainer.datasets.inspection import Inspect


def test_ended_process_is_replaced_by_the_next_job_only(tmp_path):
    """A broken installation would otherwise start a process at each poll of an idle service."""
    starts = tmp_path / "starts"
    decoder = ConfinedDecoder(environment=os.environ, program=("sh", "-c", f"echo >> {starts}; exit 1"))

    decoder.warm()
    wait_for(starts.exists)
    for _ in range(5):
        time.sleep(0.05)
        decoder.warm()
    assert starts.read_text() == "\n"

    with pytest.raises(MachineFailed):
        decoder(Inspect(order={}, sources=(), roots={}, readable=(), made=str(tmp_path)), StopSignal())
    assert starts.read_text() == "\n\n"
    decoder.warm()
    wait_for(lambda: starts.read_text() == "\n\n\n")
    decoder.close()
