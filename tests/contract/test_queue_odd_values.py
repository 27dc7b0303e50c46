"""The contract of every queue for rows with invalid or unusual values."""

import math

import pytest
from queue_adapters import checkpoint, claim, claimed, enqueue, event, key_of

from trainer.core.errors import BadRequest
from trainer.core.job import Completed, Failed, RunRequest, Verdict

ODD = [
    "nonsense",
    "{",
    "",
    0,
    1.5,
    True,
    [],
    [1],
    {},
    {"epochs": None},
    {"requires": "x", "device": {}},
    '{"epochs": 3}',
]


@pytest.mark.parametrize("configuration", ODD)
def test_worker_receives_configuration_unchanged(queue_lab, configuration):
    run_id = enqueue(queue_lab, configuration=configuration)
    lease = claim(queue_lab)
    assert lease.job.id == run_id
    assert lease.job.request.configuration == configuration
    assert type(lease.job.request.configuration) is type(configuration)


@pytest.mark.parametrize("nonsense", ["x", 3, [], {}, {"epoch": "x"}, {"epoch": 1, "sha256": 5, "bytes": 1}])
def test_invalid_checkpoint_column_is_ignored(queue_lab, nonsense):
    run_id = queue_lab.insert(checkpoint=nonsense)
    lease = claim(queue_lab)
    assert (lease.job.id, lease.job.checkpoint) == (run_id, None)


def test_unusual_characters_are_stored_unchanged(queue_lab):
    text = "Ω 漢字 🐕 \u202e \ufeff \u200b a\u0301 \"'\\ \n\t \x7f"
    run_id = enqueue(queue_lab, name=text, data_yaml=text, configuration={text: [text]})
    lease = claim(queue_lab)
    assert (lease.job.request.name, lease.job.request.data_yaml) == (text, text)
    assert lease.job.request.configuration == {text: [text]}
    queue_lab.queue.beat(lease, {text: text}, [event("warning", message=text)])
    queue_lab.queue.finish(lease, Failed(message=text), [])
    row = queue_lab.queue.get(run_id)
    assert (row.results, row.error_message) == ({text: text}, text)
    assert queue_lab.queue.events(run_id)[0].data == {"message": text}


def test_nul_characters_and_lone_surrogates_are_replaced_everywhere(queue_lab):
    bad, good = "a\x00b\ud800c", "a\ufffdb\ufffdc"
    run_id = enqueue(queue_lab, name=bad, data_yaml=bad, base_model=bad, configuration={bad: bad})
    lease = claim(queue_lab)
    assert (lease.job.request.name, lease.job.request.configuration) == (good, {good: good})
    queue_lab.queue.beat(lease, {bad: {"deep": [bad]}}, [event("warning", message=bad)])
    queue_lab.queue.finish(lease, Failed(message=bad, results={"log": bad}), [])
    row = queue_lab.queue.get(run_id)
    assert row.results == {good: {"deep": [good]}, "log": good}
    assert row.error_message == good
    assert queue_lab.queue.events(run_id)[0].data == {"message": good}


def test_nan_and_infinity_become_null(queue_lab):
    lease = claimed(queue_lab, configuration={"lr": math.inf})
    assert lease.job.request.configuration == {"lr": None}
    queue_lab.queue.beat(lease, {"metrics": {"loss": math.nan, "mAP": 0.5}}, [event("epoch", loss=-math.inf)])
    queue_lab.queue.finish(lease, Completed(results={"mAP": math.nan}, trained_model_url=None), [])
    row = queue_lab.queue.get(lease.job.id)
    assert row.results == {"metrics": {"loss": None, "mAP": 0.5}, "mAP": None}
    assert queue_lab.queue.events(lease.job.id)[0].data == {"loss": None}


def test_large_results_and_many_events_are_stored(queue_lab):
    lease = claimed(queue_lab)
    results = {"curves": [[i / 7 for i in range(1000)] for _ in range(20)], "text": "x" * 100_000}
    events = [event("epoch", n=n) for n in range(1000)]
    assert queue_lab.queue.beat(lease, None, events) is Verdict.OK
    assert queue_lab.queue.finish(lease, Completed(results=results, trained_model_url=None), []) is not None
    assert queue_lab.queue.get(lease.job.id).results == results
    assert len(queue_lab.queue.events(lease.job.id)) == 1000


@pytest.mark.parametrize("priority", [2**31, -(2**31), 2**80])
def test_priority_out_of_range_is_rejected(queue_lab, priority):
    with pytest.raises(BadRequest, match=r"priority .*must be a whole number"):
        queue_lab.queue.enqueue(RunRequest(data_yaml="x", priority=priority))


def test_request_without_dataset_is_enqueued(queue_lab):
    run_id = queue_lab.queue.enqueue(RunRequest(data_yaml=None, name=""))
    assert claim(queue_lab).job.request.data_yaml is None
    assert queue_lab.queue.get(run_id).run_name == "run"


def test_heartbeat_accepts_invalid_epoch_and_checkpoint_events(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [checkpoint(3, key_of(lease, 3))])
    odd = [event("checkpoint"), event("checkpoint", epoch=None, key=None)]
    odd += [
        event(kind, epoch=epoch, key=None)
        for kind in ("epoch", "checkpoint")
        for epoch in (10**15, 10**30, 1e300, -1, "x", [1])
    ]
    assert queue_lab.queue.beat(lease, None, odd) is Verdict.OK
    row = queue_lab.queue.get(lease.job.id)
    assert (row.checkpoint["key"], row.progress_epoch) == (key_of(lease, 3), 3)
