"""The contract of every queue for workers: fenced, idempotent claims, heartbeats, outcomes and releases."""

import threading
import uuid

import pytest
from queue_adapters import ago, checkpoint, claim, claimed, enqueue, event, expire, key_of, moment

from trainer.core.boottime import boottime
from trainer.core.job import Canceled, Checkpoint, Completed, Failed, Interrupted, Retry, Status, Verdict
from trainer.core.ports import Worker
from trainer.core.run_row import RunFilter

DONE = Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt")
ENDINGS = {
    "completed": DONE,
    "failed": Failed(message="No labels."),
    "canceled": Canceled(),
    "retry": Retry(message="The disk is full."),
    "interrupted": Interrupted(checkpoint=None),
}
TERMINAL = ("completed", "failed", "canceled")


def stored_for(lease):
    return Checkpoint(epoch=7, sha256="cd" * 32, bytes=77, key=key_of(lease, 7))


def kinds(lab, run_id):
    return [row.kind for row in lab.queue.events(run_id)]


# ── claim ──


def test_claim_on_empty_queue_reports_worker_online(queue_lab):
    assert claim(queue_lab, "w1") is None
    assert queue_lab.worker("w1")["status"] == "online"


def test_claim_returns_request_and_updates_row(queue_lab):
    run_id = enqueue(queue_lab, base_model="yolo11n.pt", configuration={"epochs": 3}, name="nuts", priority=4)
    lease = claim(queue_lab, "w1", claim_id=(claim_id := str(uuid.uuid4())), seconds=60)
    assert (lease.job.id, lease.claim_id, lease.worker_id, lease.seconds) == (run_id, claim_id, "w1", 60)
    assert lease.job.request.configuration == {"epochs": 3}
    assert (lease.job.request.base_model, lease.job.request.name, lease.job.request.priority) == (
        "yolo11n.pt",
        "nuts",
        4,
    )
    assert (lease.job.attempt, lease.job.checkpoint) == (1, None)
    row = queue_lab.queue.get(run_id)
    assert (row.status, row.worker_id, row.attempt) == ("running", "w1", 1)
    assert queue_lab.rows()[run_id]["claim_id"] == claim_id
    assert moment(row.started_at) == moment(row.heartbeat_at)
    assert (moment(row.lease_expires_at) - moment(row.heartbeat_at)).total_seconds() == pytest.approx(60)
    assert queue_lab.worker("w1")["status"] == "busy"


def test_lease_is_trusted_from_the_moment_before_the_claim(queue_lab):
    enqueue(queue_lab)
    before = boottime()
    lease = claim(queue_lab, seconds=60)
    assert before + 60 <= lease.trusted_until <= boottime() + 60


def test_priority_goes_first_then_age_then_id(queue_lab):
    when = ago(100)
    young = queue_lab.insert(created_at=ago(50))
    twins = sorted(queue_lab.insert(created_at=when) for _ in range(2))
    urgent = queue_lab.insert(created_at=ago(1), priority=5)
    late = queue_lab.insert(created_at=ago(500), priority=-1)
    assert [claim(queue_lab).job.id for _ in range(5)] == [urgent, *twins, young, late]


def test_peek_returns_next_run_without_claiming_it(queue_lab):
    assert queue_lab.queue.peek(Worker(id="w1")) is None
    run_id = enqueue(queue_lab)
    assert queue_lab.queue.peek(Worker(id="w1")).id == run_id
    row = queue_lab.queue.get(run_id)
    assert (row.status, row.attempt, row.lease_expires_at) == ("queued", 0, None)
    assert claim(queue_lab).job.id == run_id
    assert queue_lab.queue.peek(Worker(id="w1")) is None


def test_peek_respects_backoff_cancel_and_requirements(queue_lab):
    queue_lab.insert(not_before=ago(-100))
    queue_lab.insert(cancel_requested=True)
    queue_lab.insert(configuration={"requires": {"gpus": 2}})
    assert queue_lab.queue.peek(Worker(id="w1", capabilities={"gpus": 1})) is None


def test_claim_writes_hardware_that_web_app_reads(queue_lab):
    hardware = {"gpu_name": "H200", "gpu_memory_gb": 139.5, "cpu_model": "EPYC", "ram_gb": 128, "unheard_of": "x"}
    queue_lab.queue.claim(Worker(id="w1", hardware=hardware), str(uuid.uuid4()), 60)
    queue_lab.queue.claim(Worker(id="w1"), str(uuid.uuid4()), 60)
    row = queue_lab.worker("w1")
    assert (row["gpu_name"], float(row["gpu_memory_gb"]), row["cpu_model"]) == ("H200", 139.5, "EPYC")
    assert float(row["ram_gb"]) == 128


def test_claim_reports_version_slots_and_number_of_runs(queue_lab):
    worker = Worker(id="w1", hardware={"version": "1.2.3", "slots": 2})
    enqueue(queue_lab)
    queue_lab.queue.claim(worker, str(uuid.uuid4()), 60)
    idle = queue_lab.queue.claim(worker, str(uuid.uuid4()), 60)
    row = queue_lab.worker("w1")
    assert idle is None
    assert (row["version"], row["slots"], row["current_runs"], row["status"]) == ("1.2.3", 2, 1, "busy")
    assert abs((moment(row["last_seen"]) - moment(ago(0))).total_seconds()) < 60


def test_repeated_claim_returns_the_same_run(queue_lab):
    for _ in range(2):
        enqueue(queue_lab)
    claim_id = str(uuid.uuid4())
    first, again = claim(queue_lab, claim_id=claim_id), claim(queue_lab, claim_id=claim_id)
    assert first.job == again.job
    assert queue_lab.queue.get(first.job.id).attempt == 1


def test_repeated_claim_extends_lease(queue_lab):
    run_id, claim_id = enqueue(queue_lab), str(uuid.uuid4())
    claim(queue_lab, claim_id=claim_id, seconds=10)
    first = moment(queue_lab.queue.get(run_id).lease_expires_at)
    assert claim(queue_lab, claim_id=claim_id, seconds=100)
    assert (moment(queue_lab.queue.get(run_id).lease_expires_at) - first).total_seconds() >= 90


@pytest.mark.parametrize("ending", ENDINGS)
def test_claim_repeated_after_end_of_run_returns_none(queue_lab, ending):
    lease = claimed(queue_lab)
    enqueue(queue_lab)
    queue_lab.queue.finish(lease, ENDINGS[ending], [])
    assert claim(queue_lab, claim_id=lease.claim_id) is None
    assert queue_lab.queue.list(RunFilter(status=(Status.RUNNING,))).runs == ()


def test_concurrent_repeats_of_one_claim_get_one_run(queue_lab):
    for _ in range(8):
        enqueue(queue_lab)
    claim_id = str(uuid.uuid4())
    leases = side_by_side([lambda: claim(queue_lab, claim_id=claim_id)] * 8)
    assert len({lease.job.id for lease in leases}) == 1
    assert len(queue_lab.queue.list(RunFilter(status=(Status.RUNNING,))).runs) == 1


def test_one_of_64_workers_claims_the_only_run(queue_lab):
    run_id = enqueue(queue_lab)
    queues = [queue_lab.another() for _ in range(64)]
    leases = side_by_side(
        [lambda q=queue, n=n: q.claim(Worker(id=f"w{n}"), str(uuid.uuid4()), 60) for n, queue in enumerate(queues)]
    )
    assert [lease.job.id for lease in leases if lease] == [run_id]
    assert queue_lab.queue.get(run_id).attempt == 1


def test_64_workers_claim_each_of_200_runs_once(queue_lab):
    runs = {queue_lab.insert() for _ in range(200)}
    queues = [queue_lab.another() for _ in range(64)]
    taken = []

    def drain(queue, worker):
        while lease := queue.claim(Worker(id=worker), str(uuid.uuid4()), 60):
            taken.append(lease.job.id)

    side_by_side([lambda q=queue, n=n: drain(q, f"w{n}") for n, queue in enumerate(queues)])
    assert len(taken) == 200
    assert set(taken) == runs


def side_by_side(calls):
    """Run the calls concurrently and return their results."""
    barrier = threading.Barrier(len(calls))
    results, errors = [None] * len(calls), []

    def run(index, call):
        barrier.wait()
        try:
            results[index] = call()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return results


# ── requirements ──


@pytest.mark.parametrize(
    ("configuration", "capabilities", "served"),
    [
        (None, {}, True),
        ({}, {}, True),
        ({"requires": {"gpus": 1}}, {}, False),
        ({"requires": {"gpus": 1}}, {"gpus": 1}, True),
        ({"requires": {"gpus": 2}}, {"gpus": 1}, False),
        ({"requires": {"gpus": "2"}}, {"gpus": 1}, False),
        ({"requires": {"gpus": "2"}}, {"gpus": 4}, True),
        ({"requires": {"gpus": 0}}, {}, True),
        ({"requires": {"gpus": -3}}, {}, True),
        ({"requires": {"gpus": True}}, {}, True),
        ({"requires": {"gpus": "many"}}, {}, True),
        ({"requires": {"gpus": None}}, {}, True),
        ({"requires": {"gpus": [4]}}, {}, True),
        ({"requires": [4]}, {}, True),
        ({"requires": "gpus"}, {}, True),
        ({"requires": {"gpu_memory_gb": 80}}, {"gpus": 1, "gpu_memory_gb": 24}, False),
        ({"requires": {"gpu_memory_gb": "79.5"}}, {"gpus": 1, "gpu_memory_gb": 79}, False),
        ({"requires": {"gpu_memory_gb": "79.5"}}, {"gpus": 1, "gpu_memory_gb": 79.5}, True),
        ({"requires": {"gpu_memory_gb": "nan"}}, {}, True),
        ({"requires": {"gpu_memory_gb": 1e300}}, {}, True),
        ({"device": 0}, {}, True),
        ({"device": "0"}, {}, True),
        ({"device": "cpu"}, {}, True),
        ({"device": [0]}, {}, True),
        ({"device": "0,1"}, {"gpus": 1}, False),
        ({"device": "0, 1"}, {"gpus": 2}, True),
        ({"device": "0,"}, {}, True),
        ({"device": [0, 1, 2]}, {"gpus": 2}, False),
        ({"device": [0, 1, 2]}, {"gpus": 3}, True),
        ({"device": "0,1", "requires": {"gpus": 4}}, {"gpus": 2}, False),
        ({"device": {"a": 1, "b": 2}}, {}, True),
        ('{"requires": {"gpus": 2}}', {"gpus": 1}, False),
        ('{"requires": {"gpus": 2}}', {"gpus": 2}, True),
        ('{"requires": {"gpus": 2}', {}, True),
        ("nonsense", {}, True),
        ("", {}, True),
        ([1, 2], {}, True),
        (7, {}, True),
    ],
)
def test_run_is_given_to_worker_that_has_what_it_requires(queue_lab, configuration, capabilities, served):
    run_id = queue_lab.insert(configuration=configuration)
    lease = claim(queue_lab, **capabilities)
    assert (lease is not None) == served
    assert queue_lab.queue.get(run_id).status == ("running" if served else "queued")


def test_unservable_run_does_not_block_others(queue_lab):
    queue_lab.insert(configuration={"requires": {"gpus": 8}}, priority=9)
    run_id = enqueue(queue_lab)
    assert claim(queue_lab, gpus=1).job.id == run_id


def test_job_has_number_of_required_gpus(queue_lab):
    enqueue(queue_lab, configuration={"device": [0, 1]})
    assert claim(queue_lab, gpus=2).job.gpus == 2


# ── heartbeat ──


def test_heartbeat_extends_lease(queue_lab):
    lease = claimed(queue_lab)
    expire(queue_lab, lease.job.id)
    assert queue_lab.queue.beat(lease, None, []) is Verdict.OK
    row = queue_lab.queue.get(lease.job.id)
    assert (moment(row.lease_expires_at) - moment(row.heartbeat_at)).total_seconds() == pytest.approx(60)
    assert row.results is None


def test_heartbeat_reports_worker_busy(queue_lab):
    lease = claimed(queue_lab, "w7")
    assert queue_lab.worker("w7")["status"] == "busy"
    seen = moment(queue_lab.worker("w7")["last_seen"])
    queue_lab.queue.beat(lease, None, [])
    assert queue_lab.worker("w7")["status"] == "busy"
    assert moment(queue_lab.worker("w7")["last_seen"]) > seen


def test_progress_is_merged_into_results(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 1, "eta": "0:10"}, "metrics": {"epoch": 1}}, [])
    queue_lab.queue.beat(lease, {"progress": {"epoch": 2}}, [])
    assert queue_lab.queue.get(lease.job.id).results == {"progress": {"epoch": 2}, "metrics": {"epoch": 1}}


@pytest.mark.parametrize("nonsense", [[1, 2], "text", 7, None])
def test_progress_replaces_results_that_are_not_an_object(queue_lab, nonsense):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, results=nonsense)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 2}}, []) is Verdict.OK
    assert queue_lab.queue.get(lease.job.id).results == {"progress": {"epoch": 2}}


def test_events_are_stored_once_in_order_under_attempt(queue_lab):
    lease = claimed(queue_lab)
    first, second = event("phase", phase="training"), event("warning", code="x", message="ü")
    queue_lab.queue.beat(lease, None, [first])
    queue_lab.queue.beat(lease, None, [first, second])
    rows = queue_lab.queue.events(lease.job.id)
    assert [(row.attempt, row.seq, row.kind) for row in rows] == [
        (1, first.seq, "phase"),
        (1, second.seq, "warning"),
    ]
    assert rows[1].data == {"code": "x", "message": "ü"}
    assert rows[1].run_id == lease.job.id
    assert moment(rows[1].at) == moment(second.at)


def test_repeated_heartbeat_only_extends_lease(queue_lab):
    lease = claimed(queue_lab)
    sent = ({"progress": {"epoch": 3}}, [checkpoint(3, "k3")])
    queue_lab.queue.beat(lease, *sent)
    before = queue_lab.queue.get(lease.job.id)
    assert queue_lab.queue.beat(lease, *sent) is Verdict.OK
    assert settled(queue_lab.queue.get(lease.job.id)) == settled(before)
    assert kinds(queue_lab, lease.job.id) == ["checkpoint"]


def settled(row):
    """Return the row without the times that every call changes."""
    return {k: v for k, v in row.as_json().items() if k not in ("updated_at", "heartbeat_at", "lease_expires_at")}


def test_repeated_heartbeat_does_not_restore_older_checkpoint(queue_lab):
    lease = claimed(queue_lab)
    old = checkpoint(3, "k3")
    queue_lab.queue.beat(lease, None, [old])
    queue_lab.queue.beat(lease, None, [checkpoint(5, "k5")])
    queue_lab.queue.beat(lease, None, [old])
    row = queue_lab.queue.get(lease.job.id)
    assert (row.checkpoint["epoch"], row.progress_epoch) == (5, 5)


def test_only_checkpoint_with_key_is_stored_in_row(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [checkpoint(2, "k2"), checkpoint(3)])
    row = queue_lab.queue.get(lease.job.id)
    assert row.checkpoint == {"epoch": 2, "sha256": "ab" * 32, "bytes": 1002, "key": "k2"}
    assert row.progress_epoch == 3


def test_next_attempt_gets_last_reported_epoch(queue_lab):
    lease = claimed(queue_lab)
    assert lease.job.last_reported_epoch == 0
    queue_lab.queue.beat(lease, None, [event("epoch", epoch=1), second := event("epoch", epoch=2), checkpoint(5)])
    queue_lab.queue.beat(lease, None, [second])  # repeated
    queue_lab.edit(lease.job.id, lease_expires_at=ago(1))
    taken = claim(queue_lab)
    assert (taken.job.last_reported_epoch, taken.job.last_reported_attempt) == (2, 1)
    queue_lab.queue.beat(lease, None, [event("epoch", epoch=3)])  # rejected, so not part of the history
    queue_lab.queue.finish(taken, Interrupted(checkpoint=None), [event("epoch", epoch=4)])
    again = claim(queue_lab)
    assert (again.job.last_reported_epoch, again.job.last_reported_attempt) == (4, 2)
    queue_lab.queue.finish(
        again, Interrupted(checkpoint=None), [event("epoch", epoch=1)]
    )  # a training that starts over
    assert claim(queue_lab).job.last_reported_epoch == 1


def test_finish_request_is_returned_by_every_heartbeat(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.request_finish(lease.job.id)
    assert queue_lab.queue.beat(lease, None, []) is Verdict.FINISH
    assert queue_lab.queue.beat(lease, None, []) is Verdict.FINISH
    assert queue_lab.queue.finish(lease, DONE, []) is not None


def test_cancel_wins_over_finish_request(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.request_finish(lease.job.id)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.beat(lease, None, []) is Verdict.CANCEL


# ── fencing ──


@pytest.mark.parametrize("ending", ENDINGS)
def test_worker_without_lease_changes_nothing(queue_lab, ending):
    stale = claimed(queue_lab, "w1")
    expire(queue_lab, stale.job.id)
    held = claim(queue_lab, "w1")  # the same worker id, which is not a fencing token
    assert (held.job.id, held.job.attempt) == (stale.job.id, 2)
    before, told = queue_lab.queue.get(stale.job.id), queue_lab.queue.events(stale.job.id)
    assert queue_lab.queue.beat(stale, {"progress": {"epoch": 99}}, [checkpoint(99, "stale")]) is Verdict.LOST
    assert queue_lab.queue.finish(stale, ENDINGS[ending], [event()]) is None
    assert queue_lab.queue.get(stale.job.id) == before
    assert queue_lab.queue.events(stale.job.id) == told
    assert queue_lab.queue.beat(held, None, []) is Verdict.OK


@pytest.mark.parametrize("ending", TERMINAL)
@pytest.mark.parametrize("late", ENDINGS)
def test_ended_run_is_final(queue_lab, ending, late):
    lease = claimed(queue_lab)
    assert queue_lab.queue.finish(lease, ENDINGS[ending], []) is not None
    before = queue_lab.queue.get(lease.job.id)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 99}}, [event()]) is Verdict.LOST
    queue_lab.queue.finish(lease, ENDINGS[late], [event()])
    assert queue_lab.queue.get(lease.job.id) == before
    assert (before.status, before.lease_expires_at) == (ending, None)
    assert kinds(queue_lab, lease.job.id) == []


@pytest.mark.parametrize("ending", TERMINAL)
def test_different_outcome_after_the_first_is_lost(queue_lab, ending):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, ENDINGS[ending], [])
    for other in TERMINAL:
        assert queue_lab.queue.finish(lease, ENDINGS[other], []) == (ending if other == ending else None)


@pytest.mark.parametrize("ending", ENDINGS)
def test_deleted_run_is_lost(queue_lab, ending):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [event()])
    queue_lab.delete(lease.job.id)
    assert queue_lab.queue.beat(lease, {"progress": {}}, [event()]) is Verdict.LOST
    assert queue_lab.queue.finish(lease, ENDINGS[ending], [event()]) is None
    assert queue_lab.queue.get(lease.job.id) is None
    assert queue_lab.queue.events(lease.job.id) == []


# ── finish ──


def test_completed_run_has_merged_results_and_model_url(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 3}, "mAP": None}, [])
    assert queue_lab.queue.finish(lease, DONE, [event("finished")]) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert row.results == {"progress": {"epoch": 3}, "mAP": 0.5}
    assert (row.status, row.trained_model_url, row.error_message) == ("completed", "https://x/best.pt", None)
    assert row.completed_at is not None
    assert (row.canceled_at, row.lease_expires_at) == (None, None)
    assert kinds(queue_lab, lease.job.id) == ["finished"]
    assert queue_lab.worker("w1")["status"] == "online"


def test_failed_run_has_reason_and_keeps_results(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 3}}, [])
    assert queue_lab.queue.finish(lease, Failed(message="No labels.", results={"artifacts": []}), []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.error_message) == ("failed", "No labels.")
    assert row.completed_at is not None
    assert (row.trained_model_url, row.results) == (None, {"progress": {"epoch": 3}, "artifacts": []})


def test_canceled_run_keeps_results_without_model(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.finish(lease, Canceled(results={"artifacts": [{"name": "last.pt"}]}), []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.error_message) == ("canceled", "Canceled by user.")
    assert row.canceled_at is not None
    assert row.completed_at is not None
    assert (row.results, row.trained_model_url) == ({"artifacts": [{"name": "last.pt"}]}, None)


@pytest.mark.parametrize("name", ["completed", "canceled", "failed", "retry", "interrupted"])
def test_only_resumable_run_keeps_its_checkpoint(queue_lab, name):
    lease = claimed(queue_lab)
    assert queue_lab.queue.finish(lease, ENDINGS[name], [checkpoint(3, "k3")]) is not None

    named = queue_lab.queue.get(lease.job.id).checkpoint

    assert named is None if name in ("completed", "canceled") else named["key"] == "k3"


def test_canceled_queued_run_has_no_checkpoint(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, ENDINGS["interrupted"], [checkpoint(3, "k3")])

    queue_lab.queue.cancel(lease.job.id)

    assert queue_lab.queue.get(lease.job.id).checkpoint is None


def test_repeated_outcome_is_accepted_and_changes_nothing(queue_lab):
    for name, outcome in ENDINGS.items():
        lease = claimed(queue_lab)
        sent = [event("phase", n=name)]
        assert queue_lab.queue.finish(lease, outcome, sent) is not None
        before = queue_lab.queue.get(lease.job.id)
        assert queue_lab.queue.finish(lease, outcome, sent) is not None
        assert queue_lab.queue.get(lease.job.id) == before
        assert kinds(queue_lab, lease.job.id) == ["phase"]
        queue_lab.delete(lease.job.id)


def test_completed_outcome_wins_over_late_cancel(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.get(lease.job.id).status == "canceling"
    assert queue_lab.queue.finish(lease, DONE, []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.trained_model_url, row.error_message) == ("completed", "https://x/best.pt", None)


def test_failed_outcome_of_canceling_run_is_failed(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.finish(lease, Failed(message="Diverged."), []) is not None
    assert queue_lab.queue.get(lease.job.id).status == "failed"


@pytest.mark.parametrize("ending", ["retry", "interrupted"])
def test_canceling_run_is_not_requeued(queue_lab, ending):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.finish(lease, ENDINGS[ending], []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.error_message, row.lease_expires_at) == ("canceled", "Canceled by user.", None)
    assert queue_lab.queue.finish(lease, ENDINGS[ending], []) is not None
    assert claim(queue_lab) is None


@pytest.mark.parametrize(
    ("outcome", "max_attempts", "status"),
    [
        ("completed", 3, "completed"),
        ("failed", 3, "failed"),
        ("canceled", 3, "canceled"),
        ("retry", 3, "queued"),
        ("retry", 1, "failed"),
        ("interrupted", 3, "queued"),
    ],
)
def test_finish_returns_status_of_row(queue_lab, outcome, max_attempts, status):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, max_attempts=max_attempts)
    assert queue_lab.queue.finish(lease, ENDINGS[outcome], []) == status
    assert queue_lab.queue.get(lease.job.id).status == status
    assert queue_lab.queue.finish(lease, ENDINGS[outcome], []) == status, "a repeated call gets the same answer"


@pytest.mark.parametrize("outcome", ["retry", "interrupted"])
def test_finish_returns_canceled_for_retry_of_canceled_run(queue_lab, outcome):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.finish(lease, ENDINGS[outcome], []) == "canceled"


# ── release ──


def test_released_run_is_claimed_at_once_and_counts_no_attempt(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 7}}, [])
    assert queue_lab.queue.finish(lease, Interrupted(checkpoint=stored_for(lease)), [event()]) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.failures, row.not_before, row.lease_expires_at) == ("queued", 0, None, None)
    assert row.results == {"progress": {"epoch": 7}}
    assert row.started_at is not None
    taken = claim(queue_lab, "w2")
    assert (taken.job.id, taken.job.attempt, taken.job.checkpoint) == (lease.job.id, 2, stored_for(lease))
    assert queue_lab.queue.get(lease.job.id).started_at == row.started_at


def test_release_without_uploaded_checkpoint_keeps_the_stored_one(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [checkpoint(2, key_of(lease, 2))])
    queue_lab.queue.finish(lease, Interrupted(checkpoint=Checkpoint(epoch=9, sha256="ef", bytes=9)), [])
    assert claim(queue_lab, "w2").job.checkpoint.key == key_of(lease, 2)


def test_results_of_released_run_survive_cancel(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 7}}, [])
    listed = {"artifacts": [{"name": "last.pt"}]}
    assert queue_lab.queue.finish(lease, Interrupted(checkpoint=stored_for(lease), results=listed), []) is not None
    assert queue_lab.queue.get(lease.job.id).results == {"progress": {"epoch": 7}, **listed}
    row = queue_lab.queue.cancel(lease.job.id)
    assert (row.status, row.results) == ("canceled", {"progress": {"epoch": 7}, **listed})


def test_results_of_retried_run_survive_cancel(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 7}}, [])
    listed = {"artifacts": [{"name": "last.pt"}]}
    assert queue_lab.queue.finish(lease, Retry(message="killed", results=listed), []) is not None
    assert queue_lab.queue.get(lease.job.id).results == {"progress": {"epoch": 7}, **listed}
    row = queue_lab.queue.cancel(lease.job.id)
    assert (row.status, row.results) == ("canceled", {"progress": {"epoch": 7}, **listed})


def test_retry_of_canceling_run_keeps_results(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    listed = {"artifacts": [{"name": "last.pt"}]}
    assert queue_lab.queue.finish(lease, Retry(message="killed", results=listed), []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.results) == ("canceled", listed)


def test_release_ends_the_lease(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, Interrupted(checkpoint=stored_for(lease)), [])
    before = queue_lab.queue.get(lease.job.id)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 9}}, [event()]) is Verdict.LOST
    assert queue_lab.queue.finish(lease, DONE, [event()]) is None
    assert queue_lab.queue.get(lease.job.id) == before


def test_run_can_be_released_any_number_of_times(queue_lab):
    run_id = enqueue(queue_lab)
    for attempt in range(1, 7):
        lease = claim(queue_lab)
        assert (lease.job.id, lease.job.attempt) == (run_id, attempt)
        assert queue_lab.queue.finish(lease, Interrupted(checkpoint=None), []) is not None
    assert queue_lab.queue.get(run_id).failures == 0
