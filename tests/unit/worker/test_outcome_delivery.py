"""The outcome of a run is delivered after an outage or a crash."""

import json
import time

from tests.unit.worker.fakes import Replaced, raising
from trainer.core.errors import Unavailable
from trainer.core.stop import StopReason
from trainer.worker.journal import Journal


def test_outcome_is_delivered_after_outage(worker):
    run_id = worker.enqueue()
    fail = raising(Unavailable("down"), Unavailable("down"))

    def finish(*arguments):
        fail()
        return worker.queue.finish(*arguments)

    worker.work(queue=Replaced(worker.queue, finish=finish))

    assert worker.row(run_id)["status"] == "completed"
    assert not list(worker.folders.journals.iterdir())


def test_outcome_of_canceled_run_is_delivered_after_drain_time(worker):
    worker.drain_seconds = 0.1
    run_id = worker.enqueue()
    worker.trainer.during = lambda epoch: worker.queue.cancel(run_id) and worker.trainer.stop.wait(30)
    refused_until = []

    def finish(*arguments):
        refused_until[:] = refused_until or [time.monotonic() + 3 * worker.drain_seconds]
        if time.monotonic() < refused_until[0]:
            raise Unavailable("down")
        return worker.queue.finish(*arguments)

    worker.work(queue=Replaced(worker.queue, finish=finish))

    row = worker.row(run_id)
    assert row["status"] == "canceled"
    assert row["results"]["artifacts"]
    assert not list(worker.folders.journals.iterdir())


def test_undelivered_outcome_is_delivered_by_next_process(worker):
    run_id = worker.enqueue()

    def finish(*_):
        worker.shutdown.set(StopReason.SHUTDOWN)
        raise Unavailable("down")

    worker.drain_seconds = 0.2
    worker.work(queue=Replaced(worker.queue, finish=finish))
    assert worker.row(run_id)["status"] == "running"

    worker.deliver_orphans()

    assert worker.row(run_id)["status"] == "completed"
    assert worker.row(run_id)["results"]["mAP"] == 0.5
    assert not list(worker.folders.journals.iterdir())


def test_run_of_crashed_process_is_requeued(worker):
    run_id = worker.enqueue()
    journal = Journal.create(worker.folders.journals, worker.claim())
    journal.record("epoch", {"epoch": 1})
    journal.close()

    worker.deliver_orphans()

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "crash" in row["error_message"]
    assert "epoch" in worker.kinds(run_id)


def test_heartbeats_and_outcomes_contain_few_events_of_a_long_history(worker):
    """Megabytes in one call could exceed its time limit at every try, and then a cancel request would not arrive."""
    run_id = worker.enqueue()
    journal = Journal.create(worker.folders.journals, worker.claim())
    for number in range(40):
        journal.record("epoch", {"epoch": number, "text": "x" * 100_000})
    for number in range(40, 700):
        journal.record("epoch", {"epoch": number})
    journal.close()
    sent = []

    def recorded(method):
        def call(lease, content, events):
            sent.append(events)
            return method(lease, content, events)

        return call

    beat, finish = recorded(worker.queue.beat), recorded(worker.queue.finish)
    worker.deliver_orphans(queue=Replaced(worker.queue, beat=beat, finish=finish))

    assert [event.data["epoch"] for event in worker.queue.events(run_id) if event.kind == "epoch"] == [*range(700)]
    assert max(map(len, sent)) == 200
    assert max(sum(len(json.dumps(event.data)) for event in events) for events in sent) < 256 * 1024
