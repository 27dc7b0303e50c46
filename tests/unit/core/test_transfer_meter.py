"""The meter that reports the progress and the rate of uploads and downloads."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from trainer.core import transfer
from trainer.core.events import Phase
from trainer.core.transfer import Meter


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(transfer, "time", clock)
    return clock


def test_rate_and_time_left_are_computed_from_transferred_bytes(clock):
    events = []
    meter = Meter(events.append, total_files=2, total_bytes=400, phase=Phase.UPLOADING)
    clock.now += 2.0

    meter.count(100)

    assert (events[-1].phase, events[-1].bytes, events[-1].rate) == (Phase.UPLOADING, 100, 50.0)
    assert events[-1].eta_seconds == 6.0


def test_progress_is_reported_at_most_twice_a_second_and_at_the_end(clock):
    events = []
    meter = Meter(events.append, total_files=2, total_bytes=20, phase=Phase.UPLOADING)
    for _ in range(10):
        meter.count(1)
        clock.now += 0.125
    meter.finish_file()
    assert len(events) == 3  # at the start, after 0.5 s and after 1 s

    meter.finish_file()

    assert (len(events), events[-1].files) == (4, 2)


def test_bytes_of_four_threads_are_all_counted(clock):
    events = []
    meter = Meter(events.append, total_files=1, total_bytes=40_000, phase=Phase.UPLOADING)

    def upload(_):
        for _ in range(10_000):
            meter.count(1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, range(4)))
    meter.finish_file()

    assert events[-1].bytes == 40_000


def test_totals_include_transfers_that_are_expected_later(clock):
    events = []
    meter = Meter(events.append, total_files=1)

    meter.expect(10, files=1)
    meter.finish_file()
    meter.finish_file()

    assert (events[-1].files, events[-1].total_files, events[-1].total_bytes) == (2, 2, 10)
