"""The clock of the SQLite queue: leases and backoff keep their duration after any change of the wall clock."""

import json
import sqlite3
import subprocess
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.core.boottime import boottime
from trainer.core.job import Retry, RunRequest, Verdict
from trainer.core.ports import Worker
from trainer.jobs.sqlite import SqliteQueue
from trainer.jobs.sqlite_clock import HOST_CLOCK, HostClock, queue_time
from trainer.jobs.sqlite_schema import SCHEMA

ROOT = Path(__file__).parents[3]
HOUR = 3600.0  # seconds


class Host:
    """A simulated host with methods to wait, to set its wall clock and to reboot."""

    def __init__(self, now=1_800_000_000.0):
        self.wall, self.booted_for, self.boot = now, 1000.0, "boot 1"

    def clock(self):
        return HostClock(wall=lambda: self.wall, since_boot=lambda: self.booted_for, boot_id=lambda: self.boot)

    def wait(self, seconds):
        self.wall += seconds
        self.booted_for += seconds

    def set_clock(self, seconds):
        self.wall += seconds

    def reboot(self):
        self.booted_for, self.boot = 20.0, self.boot + "'"


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def queue(tmp_path, host):
    return SqliteQueue(tmp_path / "queue.db", clock=host.clock())


def claim(queue, worker="w1", seconds=60.0):
    return queue.claim(Worker(id=worker), str(uuid.uuid4()), seconds)


def enqueue(queue, **request):
    return queue.enqueue(RunRequest(data_yaml="d", **request))


def wall_of(row, column="created_at"):
    return time.mktime(time.strptime(getattr(row, column)[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone


def test_lease_expires_by_clock_of_queue(host, queue):
    enqueue(queue)
    claim(queue, seconds=60)
    host.wait(60)
    assert claim(queue, "w2") is None
    host.wait(0.001)
    assert claim(queue, "w2").job.attempt == 2


def test_backoff_ends_by_clock_of_queue(host, queue):
    run_id = enqueue(queue)
    for pause in (0, 20):  # seconds of backoff after the first and the second expired lease
        assert claim(queue).job.id == run_id
        host.wait(61)
        if pause:
            assert claim(queue) is None
            host.wait(pause - 0.001)
            assert claim(queue) is None
            host.wait(0.002)
    assert claim(queue).job.attempt == 3


def test_times_are_utc_and_sort_as_text(host, queue):
    for step in (0, 0.5, 0.5, 58.999999, 3600 * 24 * 365):
        host.wait(step)
        enqueue(queue)
    stamps = [row.created_at for row in queue.list().runs]
    assert stamps == sorted(stamps, reverse=True)
    assert {len(stamp) for stamp in stamps} == {len("2027-01-15T08:00:00.000000+00:00")}


def test_clock_step_back_does_not_expire_lease(host, queue):
    enqueue(queue)
    lease = claim(queue)
    host.set_clock(-HOUR)
    assert claim(queue, "w2") is None
    assert queue.beat(lease, None, []) is Verdict.OK


@pytest.mark.parametrize("step", [-HOUR, HOUR, -30 * 24 * HOUR, 30 * 24 * HOUR])
def test_lease_keeps_its_duration_after_clock_was_set(host, queue, step):
    enqueue(queue)
    claim(queue, seconds=60)
    host.set_clock(step)
    host.wait(54)
    assert claim(queue, "w2") is None
    host.wait(13)
    assert claim(queue, "w2").job.attempt == 2


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_heartbeats_keep_lease_while_clock_is_adjusted(host, queue, step):
    enqueue(queue)
    lease = claim(queue, seconds=1800)
    host.set_clock(step)
    for _ in range(11 * 3):
        host.wait(1200)
        assert claim(queue, "w2") is None
        assert queue.beat(lease, None, []) is Verdict.OK
    assert abs(wall_of(queue.get(lease.job.id), "heartbeat_at") - host.wall) < 1


def test_backoff_keeps_its_duration_after_clock_was_set_back(host, queue):
    enqueue(queue)
    queue.finish(claim(queue), Retry(message="The disk is full."), [])
    host.set_clock(-HOUR)
    host.wait(9)
    assert claim(queue) is None
    host.wait(3)
    assert claim(queue).job.attempt == 2


def test_idle_queue_follows_forward_clock_step_immediately(host, queue):
    enqueue(queue)
    host.set_clock(300 * 24 * HOUR)  # a host without a clock battery gets the time from its time server
    host.wait(1)
    assert wall_of(queue.get(enqueue(queue))) == int(host.wall)


def test_queue_time_returns_to_wall_clock_after_hours(host, queue):
    enqueue(queue)
    host.set_clock(-HOUR)
    for _ in range(11):
        host.wait(HOUR)
        enqueue(queue)
    assert abs(wall_of(queue.list(limit=1).runs[0]) - host.wall) < 1


def test_queue_time_continues_after_reboot_with_earlier_clock(host, queue):
    enqueue(queue)
    claim(queue, seconds=60)
    before = queue.list(limit=1).runs[0].heartbeat_at
    host.reboot()
    host.set_clock(-HOUR)
    assert claim(queue, "w2") is None
    host.wait(67)
    again = claim(queue, "w2")
    assert again.job.attempt == 2
    assert queue.get(again.job.id).heartbeat_at > before


def test_queue_time_is_wall_clock_after_reboot(host, queue):
    enqueue(queue)
    claim(queue, seconds=60)
    host.reboot()
    host.wait(500)
    assert claim(queue, "w2").job.attempt == 2
    assert wall_of(queue.list(limit=1).runs[0], "heartbeat_at") == int(host.wall)


def test_reading_does_not_write_to_file(host, queue, tmp_path):
    run_id = enqueue(queue)
    before = (tmp_path / "queue.db-wal").stat() if (tmp_path / "queue.db-wal").exists() else None
    host.wait(100)
    queue.get(run_id)
    queue.peek(Worker(id="w"))
    assert before == ((tmp_path / "queue.db-wal").stat() if (tmp_path / "queue.db-wal").exists() else None)


def test_host_clock_counts_from_current_boot():
    clock = HOST_CLOCK
    assert clock.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert abs(clock.since_boot() - boottime()) < 1
    assert abs(clock.wall() - time.time()) < 1


_steps = st.lists(
    st.tuples(st.just("wait"), st.floats(0, 1e4))
    | st.tuples(st.just("set_clock"), st.floats(-1e8, 1e8))
    | st.tuples(st.just("reboot"))
    | st.tuples(st.just("lease"), st.booleans()),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(_steps)
def test_queue_time_never_decreases_and_has_normal_speed_while_run_is_leased(steps):
    host, leased = Host(), False
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        connection.execute("insert into training_runs (id, run_name, created_at, updated_at) values ('a', 'a', '', '')")
        before = queue_time(connection, host.clock(), keep=True)
        for step, *values in steps:
            queue_time(connection, host.clock(), keep=False)  # keep=False must not change the stored clock
            if step == "lease":
                leased = values[0]
                connection.execute("update training_runs set status = ?", ["running" if leased else "queued"])
            else:
                getattr(host, step)(*values)
            now = queue_time(connection, host.clock(), keep=True)
            assert now >= before - 1e-6
            if leased and step == "wait":
                assert 0.9 * values[0] - 1e-3 <= now - before <= 1.1 * values[0] + 1e-3
            before = now


# ── processes with different wall clocks ──

KILLED_AFTER_HEARTBEATS = """
import json, sys, time, uuid
from pathlib import Path
from trainer.core.ports import Worker
from trainer.jobs.sqlite import SqliteQueue
from trainer.jobs.sqlite_clock import HostClock
wrong = float(sys.argv[2])
queue = SqliteQueue(Path(sys.argv[1]), clock=HostClock(wall=lambda: time.time() + wrong))
lease = queue.claim(Worker(id="killed"), str(uuid.uuid4()), 2.0)
for _ in range(10):
    time.sleep(0.1)
    wrong = -wrong
    assert queue.beat(lease, None, []) == "ok"
print(json.dumps(time.time()), flush=True)
"""


@pytest.mark.parametrize("wrong", [-HOUR, HOUR])
def test_processes_with_different_wall_clocks_agree_about_lease(tmp_path, wrong):
    path = tmp_path / "queue.db"
    queue = SqliteQueue(path)
    run_id = enqueue(queue)
    command = [sys.executable, "-c", KILLED_AFTER_HEARTBEATS, str(path), str(wrong)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while queue.get(run_id).status != "running":
            time.sleep(0.02)
        taken = None
        while taken is None:
            taken = claim(queue, "w2", seconds=2.0)
            took_at = time.time()
            time.sleep(0.05)
        last_beat = json.loads(process.communicate(timeout=30)[0])
    assert taken.job.id == run_id
    assert 1.7 < took_at - last_beat < 4
