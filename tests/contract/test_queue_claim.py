"""The contract of every queue for workers: claims are atomic and idempotent, and respect the requirements of runs."""

import random
import threading
import uuid

import pytest
from queue_adapters import ago, claim, claimed, enqueue, moment
from queue_outcomes import OUTCOMES

from trainer.core.boottime import boottime
from trainer.core.errors import Unavailable
from trainer.core.job import Requester, Status
from trainer.core.ports import Worker
from trainer.core.run_row import RunFilter


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


def test_claimed_and_next_run_have_their_owner_and_project(queue_lab):
    worker = Worker(id="w1")
    for owner, project in (("ann", str(uuid.uuid4())), (None, None)):
        queue_lab.insert(created_by=owner, project_id=project)
        requester = Requester(created_by=owner, project_id=project)
        following = queue_lab.queue.peek(worker)
        assert (following.requester, claim(queue_lab, worker.id).job.requester) == (requester, requester)


def test_lease_duration_is_counted_from_the_start_of_the_claim(queue_lab):
    enqueue(queue_lab)
    before = boottime()
    lease = claim(queue_lab, seconds=60)
    assert before + 60 <= lease.trusted_until <= boottime() + 60


def test_runs_are_claimed_by_priority_then_age_then_id(queue_lab):
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
    hardware = {"gpu_name": "H200", "gpu_memory_gb": 139.5, "cpu_model": "EPYC", "ram_gb": 128, "unknown_column": "x"}
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


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_claim_repeated_after_outcome_returns_none(queue_lab, outcome):
    lease = claimed(queue_lab)
    enqueue(queue_lab)
    queue_lab.queue.finish(lease, OUTCOMES[outcome], [])
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

    def claim_all(queue, worker):
        claim_id = str(uuid.uuid4())
        while True:
            try:
                lease = queue.claim(Worker(id=worker), claim_id, 60)
            except Unavailable:  # 64 simultaneous calls can overload a busy host; a worker repeats its claim
                continue
            if lease is None:
                return
            taken.append(lease.job.id)
            claim_id = str(uuid.uuid4())

    side_by_side([lambda q=queue, n=n: claim_all(q, f"w{n}") for n, queue in enumerate(queues)])
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


@pytest.mark.parametrize(
    ("configuration", "capabilities", "is_claimed"),
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
        ({"requires": {"gpu_memory_gb": 24}}, {"gpus": 1, "gpu_memory_gb": 23.6}, True),
        ({"requires": {"gpu_memory_gb": 24}}, {"gpus": 1, "gpu_memory_gb": 23}, False),
        ({"requires": {"gpus": 1.5}}, {"gpus": 1}, False),
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
def test_run_is_claimed_only_by_worker_that_meets_its_requirements(queue_lab, configuration, capabilities, is_claimed):
    run_id = queue_lab.insert(configuration=configuration)
    lease = claim(queue_lab, **capabilities)
    assert (lease is not None) == is_claimed
    assert queue_lab.queue.get(run_id).status == ("running" if is_claimed else "queued")


def test_run_without_suitable_worker_does_not_block_other_runs(queue_lab):
    queue_lab.insert(configuration={"requires": {"gpus": 8}}, priority=9)
    run_id = enqueue(queue_lab)
    assert claim(queue_lab, gpus=1).job.id == run_id


def test_order_of_claims_does_not_depend_on_requirements(queue_lab):
    dice = random.Random(0)
    expected = {}
    for n in range(40):
        requires = {"gpus": dice.choice([0, 1, 2]), "gpu_memory_gb": dice.choice([0, 8, 23.5, 24])}
        priority, created_at = dice.choice([0, 0, 1]), ago(1000 + n % 10)
        backoff = dice.choice([None, None, ago(100)])
        run_id = queue_lab.insert(
            configuration={"requires": requires}, priority=priority, created_at=created_at, not_before=backoff
        )
        expected[run_id] = (-priority, moment(created_at), run_id)
        queue_lab.insert(configuration={"requires": {"gpu_memory_gb": 25 + n}}, priority=9)
    order = [claim(queue_lab, gpus=2, gpu_memory_gb=23.6).job.id for _ in expected]
    assert order == sorted(expected, key=expected.__getitem__)
    assert claim(queue_lab, gpus=2, gpu_memory_gb=23.6) is None


def test_job_has_number_of_required_gpus(queue_lab):
    enqueue(queue_lab, configuration={"device": [0, 1]})
    assert claim(queue_lab, gpus=2).job.gpus == 2
