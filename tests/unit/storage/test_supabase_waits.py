"""A wait of the Supabase store ends at its time limit or when a stop is requested."""

from __future__ import annotations

import threading
import time

import pytest

from tests.unit.storage.files_and_objects import (
    DOWNLOAD,
    REF,
    fetched,
    fill,
    listed,
    source_file,
)
from trainer.core.errors import Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.remote.storage_api import HttpTimes


@pytest.mark.parametrize("fault", [{"kind": "delay", "seconds": 30}, {"kind": "slow", "rate": 10.0}])
def test_stop_ends_wait_for_silent_server(server, store, tmp_path, fault):
    server.put(REF.bucket, REF.key, b"x" * 1000)
    server.fault(**fault, on=DOWNLOAD)
    stop = StopSignal()
    timer = threading.Timer(0.3, stop.set, [StopReason.CANCELED])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        store.download(REF, tmp_path / "out" / "best.pt", stop)
    assert time.monotonic() - began < 15
    timer.join()


def test_stop_ends_wait_between_two_tries(server, make_store, tmp_path):
    store = make_store(policy=RetryPolicy(tries=9, first_wait=60, longest_wait=60, total_seconds=600))
    server.fault("status", status=429, headers={"Retry-After": "50"}, times=99)
    stop = StopSignal()
    timer = threading.Timer(0.2, stop.set, [StopReason.CANCELED])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        store.download(REF, tmp_path / "out" / "best.pt", stop)
    assert time.monotonic() - began < 15
    timer.join()


def test_request_to_silent_server_times_out_after_read_limit(server, make_store, tmp_path):
    store = make_store(times=HttpTimes(read=0.3), policy=RetryPolicy(tries=2, first_wait=0.01))
    server.put(REF.bucket, REF.key, b"x")
    server.fault("delay", seconds=30, times=9, on=DOWNLOAD)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="ReadTimeout"):
        fetched(store, tmp_path)
    assert time.monotonic() - began < 15


def test_slow_answer_times_out_after_total_limit(server, make_store):
    store = make_store(times=HttpTimes(total=0.3), policy=RetryPolicy(tries=1))
    fill(server, 20)
    server.fault("slow", rate=100.0, on="list-v2")
    with pytest.raises(Unavailable, match="ReadTimeout"):
        listed(store)


def test_wait_after_429_has_length_requested_by_server(server, make_store, tmp_path):
    server.put(REF.bucket, REF.key, b"x")
    server.fault("status", status=429, headers={"Retry-After": "1"}, on=DOWNLOAD)
    began = time.monotonic()
    assert fetched(make_store(), tmp_path) == b"x"
    assert time.monotonic() - began >= 1


def test_stop_ends_wait_for_url_of_upload(server, make_store, tmp_path):
    path, _ = source_file(tmp_path, 10)
    store = make_store(policy=RetryPolicy(tries=9, first_wait=60, longest_wait=60, total_seconds=600))
    server.fault("status", on="/object/sign", times=99, status=503, headers={"Retry-After": "50"})
    stop = StopSignal()
    timer = threading.Timer(0.3, stop.set, [StopReason.CANCELED])
    timer.start()
    with pytest.raises(Stopped):
        store.upload(path, REF, stop)
    timer.join()
