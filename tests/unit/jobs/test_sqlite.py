"""The SQLite queue: concurrent threads and processes."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.unit.jobs.sqlite_calls import claim, enqueue, python
from trainer.core.job import Completed
from trainer.jobs.sqlite import SqliteQueue
from trainer.jobs.sqlite_clock import HOST_CLOCK
from trainer.jobs.sqlite_file import SqliteFile

ROOT = Path(__file__).parents[3]
CLAIMER = """
import json, sys, uuid
from pathlib import Path
from trainer.core.ports import Worker
from trainer.jobs.sqlite import SqliteQueue
sys.stdin.readline()
queue, taken = SqliteQueue(Path(sys.argv[1])), []
while lease := queue.claim(Worker(id=sys.argv[2]), str(uuid.uuid4()), 60):
    taken.append(lease.job.id)
print(json.dumps(taken))
"""


def test_processes_claim_each_run_once(path):
    queue = SqliteQueue(path)
    runs = {enqueue(queue) for _ in range(100)}
    workers = [python(CLAIMER, path, f"w{n}") for n in range(6)]
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    taken = [run for worker in workers for run in json.loads(worker.communicate(timeout=60)[0])]
    assert len(taken) == 100
    assert set(taken) == runs


def test_concurrent_first_opens_create_one_queue(path):
    barrier, errors = threading.Barrier(32), []

    def open_and_enqueue():
        barrier.wait()
        try:
            enqueue(SqliteQueue(path))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_and_enqueue) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(SqliteQueue(path).list(limit=100).runs) == 32


KILLED_DURING_A_CALL = """
import os, signal, sys
from pathlib import Path
from trainer.jobs.sqlite_clock import HOST_CLOCK
from trainer.jobs.sqlite_file import SqliteFile
with SqliteFile(Path(sys.argv[1]), HOST_CLOCK, 5).writing() as tx:
    tx.connection.execute("update training_runs set status = 'failed'")
    print("written", flush=True)
    signal.pause()
"""


def test_killed_process_leaves_no_partial_write_and_no_lock(path):
    queue = SqliteQueue(path, busy_seconds=5)
    run_id = enqueue(queue)
    victim = python(KILLED_DURING_A_CALL, path)
    assert victim.stdout.readline() == "written\n"
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate(timeout=10)
    assert claim(queue).job.id == run_id


def test_readers_do_not_wait_for_writer(path):
    queue = SqliteQueue(path, busy_seconds=0.05)
    run_id = enqueue(queue)
    with SqliteFile(path, HOST_CLOCK, 0.05).writing() as tx:
        tx.connection.execute("update training_runs set status = 'failed'")
        assert queue.get(run_id).status == "queued"
    assert queue.get(run_id).status == "failed"


def test_run_can_be_claimed_after_queue_is_reopened(path):
    run_id = enqueue(SqliteQueue(path), configuration={"epochs": 3})
    assert claim(SqliteQueue(path)).job.id == run_id


def test_failed_call_is_rolled_back(path, monkeypatch):
    queue = SqliteQueue(path)
    enqueue(queue)
    lease = claim(queue)
    before = queue.get(lease.job.id)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.jobs.sqlite_states.see_worker", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            queue.finish(lease, Completed(results={}, trained_model_url=None), [])
    assert queue.get(lease.job.id) == before


def test_enqueue_and_claim_leave_no_file_open(path):
    queue = SqliteQueue(path)
    open_files = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        enqueue(queue)
        claim(queue)
    assert len(os.listdir("/proc/self/fd")) == open_files
