"""Malformed rows are claimed and failed like other rows, and do not block the queue.

The values of `POISON` and `ODD` are SQL expressions, because the clients of the service cannot send such values.
"""

import contextlib
import json
import time
import uuid

import pytest
from queue_adapters import claim, claimed, enqueue

from trainer.core.errors import BadRequest, Unavailable
from trainer.core.job import Failed, RunRequest, Verdict
from trainer.core.ports import Worker
from trainer.request.parse import plan_of

DEEP = "{" + '"a":{' * 1500 + "}" * 1501
POISON = {
    "1,500 nested objects": ({"configuration": f"'{DEEP}'"}, "nested deeper than 32 levels"),
    "1,500 nested lists": ({"configuration": f"'{'[' * 1500}{']' * 1500}'"}, "nested deeper than 32 levels"),
    "33 nested lists": ({"configuration": f"'{'[' * 33}{']' * 33}'"}, "nested deeper than 32 levels"),
    "a number of 5,001 digits": ({"configuration": '\'{"epochs": 1' + "0" * 5000 + "}'"}, "more than 400 digits"),
    "a number beyond the range of floats": (
        {"configuration": '\'{"epochs": 1' + "0" * 350 + "}'"},
        "not a number that can be stored",
    ),
    "a list instead of an object": ({"configuration": "'[1, 2]'"}, "must be a JSON object"),
    "text that is not JSON": ({"configuration": "'\"{broken\"'"}, "cannot be read: not JSON"),
    "a setting of 2 MB": (
        {"configuration": f"'{json.dumps({'a': 'x' * 2_000_000})}'"},
        "longer than 65536 characters",
    ),
    "a device of 4 million commas": (
        {"configuration": f"'{json.dumps({'device': ',' * 4_000_000})}'"},
        "configuration",
    ),
    "a name of 1,001 characters": ({"run_name": f"'{'n' * 1001}'"}, "run_name: longer than 1000 characters"),
    "a name of 10 MB": ({"run_name": f"'{'n' * 10_000_000}'"}, "run_name"),
    "a data_yaml of 10 MB": ({"data_yaml": f"'{'d' * 10_000_000}'"}, "data_yaml"),
    "a base_model of 10 MB": ({"base_model": f"'{'m' * 10_000_000}'"}, "base_model"),
    "the largest attempt number": (
        {"attempt": "2147483647"},
        "attempt = 2147483647: must be from 0 to 1000000",
    ),
    "a negative attempt number": ({"attempt": "-2147483648"}, "must be from 0 to 1000000"),
}
# unusual values that do not make a row invalid
ODD = {
    "a checkpoint that is a list": {"checkpoint": "'[1]'"},
    "a checkpoint with invalid fields": {
        "checkpoint": """'{"epoch": 1e300, "sha256": {}, "bytes": -1, "key": "../../x"}'"""
    },
    "a checkpoint of 1,500 nested objects": {"checkpoint": f"'{DEEP}'"},
    "a checkpoint of another run": {
        "checkpoint": """'{"epoch": 1, "sha256": "a", "bytes": 1, "key": "training_runs/x/1/best.pt"}'"""
    },
    "results of 1,500 nested objects": {"results": f"'{DEEP}'"},
    "results that are a number of 5,001 digits": {"results": "'1" + "0" * 5000 + "'"},
    "max_attempts of zero": {"max_attempts": "0"},
    "a negative max_attempts": {"max_attempts": "-2147483648"},
    "the largest number of failures": {"failures": "2147483647"},
    "the smallest number of failures": {"failures": "-2147483648"},
    "the highest priority": {"priority": "2147483647"},
    "the largest epoch": {"last_reported_epoch": "2147483647", "progress_epoch": "2147483647"},
    "a negative epoch": {"last_reported_epoch": "-1", "progress_epoch": "-1"},
    "infinite times": {"created_at": "'-infinity'", "started_at": "'infinity'", "heartbeat_at": "'infinity'"},
    "times outside of the range of Python": {
        "created_at": "'0044-03-15 00:00:00+00 BC'",
        "started_at": "'294276-01-01 00:00:00+00'",
    },
    "host failures with invalid counts": {"host_failures": """'{"w1": "x", "w2": [1], "w3": 999999999}'"""},
}


def poisoned(lab, **sql):
    run_id = lab.insert(data_yaml="set/data.yaml", priority=9)
    lab.force(run_id, **sql)
    return run_id


def rejection_of(lease):
    with pytest.raises(BadRequest) as refused:
        plan_of(lease.job.request)
    return str(refused.value)


@pytest.mark.parametrize("poison", POISON)
def test_malformed_row_is_claimed_and_fails_with_a_reason(queue_lab, poison):
    columns, reason = POISON[poison]
    run_id, good = poisoned(queue_lab, **columns), enqueue(queue_lab)
    lease = claim(queue_lab)
    assert lease.job.id == run_id
    message = rejection_of(lease)
    assert reason in message
    assert len(message) < 1000
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 0}}, []) is Verdict.OK
    assert queue_lab.queue.finish(lease, Failed(message=message), []) is not None
    assert claim(queue_lab).job.id == good
    row = queue_lab.queue.get(run_id)
    assert (row.status, row.error_message) == ("failed", message)
    assert {row.id for row in queue_lab.queue.list(limit=5).runs} == {run_id, good}


@pytest.mark.parametrize("poison", [*POISON, *ODD])
def test_peek_returns_malformed_row_or_raises_unavailable(queue_lab, poison):
    run_id = poisoned(queue_lab, **(POISON[poison][0] if poison in POISON else ODD[poison]))
    with contextlib.suppress(Unavailable):  # the answer can be too large
        assert queue_lab.queue.peek(Worker(id="w1")).id == run_id
    assert queue_lab.queue.get(run_id).status == "queued"


@pytest.mark.parametrize("oddity", ODD)
def test_unusual_row_is_claimed_like_other_rows(queue_lab, oddity):
    run_id, good = poisoned(queue_lab, **ODD[oddity]), enqueue(queue_lab)
    lease = claim(queue_lab)
    assert lease.job.id == run_id
    assert plan_of(lease.job.request).sources == ("set/data.yaml",)
    assert lease.job.checkpoint is None
    assert lease.job.last_reported_epoch >= 0
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 1}}, []) is Verdict.OK
    assert queue_lab.queue.finish(lease, Failed(message="Diverged."), []) is not None
    assert claim(queue_lab).job.id == good
    assert queue_lab.queue.get(run_id).status == "failed"


@pytest.mark.parametrize("poison", [*POISON, *ODD])
def test_malformed_row_with_expired_lease_is_requeued_or_failed(queue_lab, poison):
    """A claim requeues or fails a run with an expired lease, whatever the other columns contain."""
    run_id = poisoned(queue_lab, **(POISON[poison][0] if poison in POISON else ODD[poison]))
    claim(queue_lab)
    queue_lab.force(run_id, lease_expires_at="'2020-01-01T00:00:00.000000+00:00'")
    good = enqueue(queue_lab)
    assert claim(queue_lab, "w2").job.id in (run_id, good)
    assert "lease_expired" in [row.kind for row in queue_lab.queue.events(run_id, after=(-(2**31), 0))]


def test_malformed_row_does_not_slow_down_claims(queue_lab):
    """Every claim reads a queued row whose requirements no worker meets."""
    run_id = queue_lab.insert(priority=9, configuration={"requires": {"gpus": 9}, "device": "," * 60_000})
    enqueue(queue_lab)
    began = time.monotonic()
    assert claim(queue_lab).job.id != run_id
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"name": "n" * 1001}, "run_name: longer than 1000 characters"),
        ({"base_model": "m" * 1001}, "base_model: longer than 1000 characters"),
        ({"data_yaml": "d" * 10_001}, "data_yaml: longer than 10000 characters"),
        ({"configuration": json.loads("[" * 33 + "]" * 33)}, "configuration: nested deeper than 32 levels"),
        ({"configuration": {"a": 10**401}}, "has more than 400 digits"),
        ({"configuration": {"a": "x" * 65_536}}, "configuration: longer than 65536 characters"),
    ],
)
def test_request_over_a_limit_is_not_enqueued(queue_lab, request_, reason):
    with pytest.raises(BadRequest, match=reason):
        queue_lab.queue.enqueue(RunRequest(**{"data_yaml": "d", **request_}))
    assert queue_lab.queue.list(limit=1).runs == ()


def test_largest_request_is_enqueued_and_claimed(queue_lab):
    nested = json.loads("[" * 31 + "]" * 31)
    request = RunRequest(
        name='"' * 1000, base_model="m" * 1000, data_yaml="\\" * 10_000,
        configuration={"nested": nested, "text": '"' * 32_000, "number": 10**308},
    )  # fmt: skip
    run_id = queue_lab.queue.enqueue(request)
    lease = claim(queue_lab)
    assert (lease.job.id, lease.job.request) == (run_id, request)


def test_repeated_claim_of_unreadable_row_returns_same_run(queue_lab):
    poisoned(queue_lab, run_name=f"'{'n' * 10_000_000}'")
    claim_id = str(uuid.uuid4())
    first, again = claim(queue_lab, claim_id=claim_id), claim(queue_lab, claim_id=claim_id)
    assert first.job == again.job
    assert first.job.attempt == 1


def test_heartbeats_do_not_change_unreadable_configuration(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.force(lease.job.id, configuration=f"'{DEEP}'")
    before = queue_lab.queue.get(lease.job.id).configuration
    for _ in range(3):
        queue_lab.queue.beat(lease, {"progress": {"epoch": 1}}, [])
    assert queue_lab.queue.get(lease.job.id).configuration == before
    assert len(before) < 2 * len(DEEP)
