"""A long journal needs little memory."""

import tracemalloc

from tests.unit.worker.test_orphaned_journals import EVENT, LEASE, OUTCOME, Answers, deliver, write
from trainer.core.job import Failed


def test_long_journal_is_read_line_by_line(tmp_path):
    """A training of 100,000 epochs has a journal of more than 64 MiB. Its delivered events are not kept in memory."""
    event = EVENT["event"] | {"data": {"message": "x" * 1_000_000}}
    lines = [line for seq in range(1, 81) for line in ({"event": event | {"seq": seq}}, {"delivered": seq})]
    write(tmp_path, "run-5.1", LEASE, *lines, {"event": event | {"seq": 81}}, OUTCOME)
    queue = Answers()

    tracemalloc.start()
    try:
        deliver(queue, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert queue.delivered == [("run-5", Failed(message="no labels"), [81])]
    assert peak < 16 * 2**20
