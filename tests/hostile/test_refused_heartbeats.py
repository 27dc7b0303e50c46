"""The real database refuses a part of what a worker sends. This is no outage: the rest arrives, and a cancel request arrives."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import os
import sys
import time

import pytest

from tests.hostile.database_rules import EVENT_RULE, ROW_RULE, epochs_of, journal, rule, worker  # noqa: F401 - fixtures
from tests.process.conftest import PROGRAMS
from tests.process.sandbox_host import needs_landlock
from tests.supabase_fixtures import supabase, supabase_lab, supabase_servers  # noqa: F401 - fixtures
from tests.unit.worker.harness import in_background, wait_for
from trainer.core.errors import Refused
from trainer.core.events import Warned
from trainer.core.job import Completed, Failed, Interrupted, RunEvent, Verdict
from trainer.core.progress import Progress
from trainer.training.supervisor.process import ChildTrainer
from trainer.worker.event_delivery import EventDelivery
from trainer.worker.event_sink import EventSink
from trainer.worker.journal import Journal
from trainer.worker.outcome_delivery import send


@pytest.mark.parametrize(
    "condition",
    [
        "new.kind = 'epoch' and new.data ->> 'epoch' = '2'",
        "case new.data ->> 'code' when 'x' then (new.data ->> 'message')::int4 > 0 end",
    ],
)
def test_refused_event_is_dropped_and_run_completes(worker, rule, condition):
    """In the second case, the rule fails with 22003 instead of P0001."""
    rule(EVENT_RULE, condition)
    worker.trainer.during = lambda epoch: epoch == 1 and worker.trainer.on_event(Warned(code="x", message="3000000000"))
    run_id = worker.enqueue()
    _give_event_sink(worker)

    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert worker.row(run_id)["results"]["mAP"] == 0.5
    assert epochs_of(worker, run_id) == ([1, 3] if "epoch" in condition else [1, 2, 3])
    (message,) = worker.warnings(run_id, "event_refused")
    assert "refused event" in message
    assert not list(worker.folders.journals.iterdir())


def _give_event_sink(worker):
    """Give the fake training `on_event`, so that `during` can send events."""
    train = worker.trainer.train

    def with_sink(order, stop, on_event, on_line):
        worker.trainer.on_event = on_event
        return train(order, stop, on_event, on_line)

    worker.trainer.train = with_sink


def test_cancel_arrives_while_every_event_is_refused(worker, rule):
    rule(EVENT_RULE, "new.seq < 1000000")
    run_id = worker.enqueue()
    began = []

    def cancel(epoch):
        if epoch == 2:
            worker.queue.cancel(run_id)
            began.append(time.monotonic())
        worker.trainer.stop.wait(30 if epoch == 2 else 0.2)

    worker.trainer.during = cancel

    worker.work()

    assert worker.row(run_id)["status"] == "canceled"
    assert time.monotonic() - began[0] < 10


def test_refused_progress_does_not_hold_up_events(worker, rule):
    rule(ROW_RULE, "results -> 'progress' ->> 'phase' is distinct from 'training'")
    run_id = worker.enqueue()
    worker.trainer.epochs = 2

    def wait_for_events(epoch):
        if epoch == 2:
            wait_for(lambda: epochs_of(worker, run_id) == [1])

    worker.trainer.during = wait_for_events

    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert epochs_of(worker, run_id) == [1, 2]
    assert worker.warnings(run_id, "event_refused") == []


@pytest.mark.parametrize("number", [1, 57, 199, 200, 201, 450])
def test_only_refused_event_is_missing(worker, rule, journal, number):
    rule(EVENT_RULE, f"new.data ->> 'epoch' = '{number}'")
    for epoch in range(1, 451):
        journal.record("epoch", {"epoch": epoch})

    status = send(worker.queue, journal, Completed(results={"mAP": 0.5}, trained_model_url="u"))

    assert status == "completed"
    run_id = journal.lease.job.id
    assert epochs_of(worker, run_id) == [epoch for epoch in range(1, 451) if epoch != number]
    assert len(worker.warnings(run_id, "event_refused")) == 1


def test_dropped_event_stays_dropped_after_crash(worker, rule):
    rule(EVENT_RULE, "new.data ->> 'epoch' = '2'")
    run_id = worker.enqueue()
    journal = Journal.create(worker.folders.journals, worker.claim())
    for epoch in (1, 2, 3):
        journal.record("epoch", {"epoch": epoch})
    journal.close()

    worker.deliver_orphans()

    assert worker.row(run_id)["status"] == "queued"
    assert epochs_of(worker, run_id) == [1, 3]
    assert not list(worker.folders.journals.iterdir())


def test_checkpoint_of_dropped_event_does_not_count_as_delivered(worker, rule, journal):
    """The row does not name this checkpoint, so the checkpoint in the row must not be deleted."""
    rule(EVENT_RULE, "new.kind = 'checkpoint'")
    journal.record("checkpoint", {"epoch": 1, "key": "k"})
    delivery = EventDelivery(worker.queue.beat, journal)

    while journal.pending():
        assert delivery.send() is Verdict.OK

    sink = EventSink(journal.lease.job, journal, Progress(), None, None)
    assert not sink.is_delivered("k")
    assert [event.kind for event in worker.queue.events(journal.lease.job.id)] == ["warning"]


def test_no_event_is_dropped_while_row_refuses_every_heartbeat(worker, rule, journal):
    rule(f"{ROW_RULE} not valid", "worker_id is null")
    journal.record("epoch", {"epoch": 1})
    delivery = EventDelivery(worker.queue.beat, journal)

    for _ in range(5):
        with pytest.raises(Refused):
            delivery.send()

    assert [event.seq for event in journal.pending()] == [1]


@pytest.mark.parametrize(
    ("condition", "outcome", "status", "expected"),
    [
        (
            "not coalesce(results ? 'curves', false)",
            Completed(results={"mAP": 0.5, "curves": {}, "notes": ["a"]}, trained_model_url="u"),
            "completed",
            {"mAP": 0.5, "notes": ["a", "`curves` was left out, because the database refused it"]},
        ),
        (
            "not coalesce(results ? 'curves' or results ? 'test', false)",
            Completed(results={"curves": {}, "test": {}}, trained_model_url="u"),
            "completed",
            {},
        ),
        ("error_message is distinct from 'odd'", Failed(message="odd", results={"a": 1}), "failed", {"a": 1}),
        (
            "not coalesce(results ? 'b', false)",
            Interrupted(checkpoint=None, results={"a": 1, "b": 2}),
            "queued",
            {"a": 1, "notes": ["`b` was left out, because the database refused it"]},
        ),
    ],
    ids=["one part", "two parts", "message", "interrupted"],
)
def test_outcome_is_delivered_without_refused_parts(worker, rule, journal, condition, outcome, status, expected):
    rule(ROW_RULE, condition)
    journal.record("epoch", {"epoch": 1})

    assert send(worker.queue, journal, outcome) == status

    row = worker.row(journal.lease.job.id)
    assert row["status"] == status
    assert (row["results"] or {}) == expected
    assert row["trained_model_url"] == getattr(outcome, "trained_model_url", None)
    assert epochs_of(worker, row["id"]) == [1]


def test_run_table_error_of_a_rule_names_the_rule(worker, rule, journal):
    rule(ROW_RULE, "not coalesce(results ? 'b', false)")

    with pytest.raises(Refused, match=r"refuses a value of the call \(400 23514 .*app_rule"):
        worker.queue.beat(journal.lease, {"b": 1}, [])
    with pytest.raises(Refused, match=r"22P02|22007"):
        worker.queue.beat(journal.lease, None, [RunEvent(seq=1, at="no time", kind="epoch", data={})])


@pytest.fixture
def hostile(worker, tmp_path):
    """Return a function that gives the worker a real training process, which runs code in its sandbox."""

    def run(code):
        program = (sys.executable, str(PROGRAMS / "sends_hostile_events.py"), code)
        (tmp_path / "home").mkdir()
        worker.trainer = ChildTrainer(
            environment=dict(os.environ), home=tmp_path / "home", weights=tmp_path / "models", program=program
        )
        return worker.enqueue()

    yield run
    worker.trainer.close()


@needs_landlock
def test_cancel_arrives_while_training_sends_impossible_epochs(worker, hostile):
    """Before the limits, such an epoch made the database refuse every heartbeat, which counted as an outage."""
    run_id = hostile("""
import time
phase('training')
for number in range(10**9):
    send(kind='epoch', epoch=3_000_000_000, total_epochs=2**70, metrics={'a': 10**400}, seconds=1e300)
    send(kind='checkpoint', epoch=3_000_000_000, sha256='ab' * 32, bytes=2**80, path='.env', key='other/best.pt')
    time.sleep(0.05)
""")
    with in_background(worker.work):
        wait_for(lambda: "warning" in worker.kinds(run_id))
        worker.queue.cancel(run_id)
        wait_for(lambda: worker.row(run_id)["status"] == "canceled")

    assert worker.row(run_id)["checkpoint"] is None
    assert {"epoch", "checkpoint"}.isdisjoint(worker.kinds(run_id))


@needs_landlock
def test_flood_of_events_fails_run_with_reason(worker, hostile):
    run_id = hostile("phase('training')\nwhile True: send(kind='warning', code='x', message='\\x1b[2J' + 'y' * 3000)")

    worker.work()

    row = worker.row(run_id)
    assert row["status"] == "failed"
    assert row["error_message"].startswith("The training sent more events than a training needs")
    messages = worker.warnings(run_id, "x")
    assert len(messages) < 10_100
    assert messages[0].startswith("\\x1b[2Jy")
