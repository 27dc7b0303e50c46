"""Conversion of rows to jobs, and of requests, events and outcomes to columns."""

import json
import math
from datetime import UTC, datetime

import pytest

from trainer.core.errors import BadRequest, Unavailable
from trainer.core.job import Canceled, Checkpoint, Completed, Failed, Retry, RunEvent, RunRequest, Status
from trainer.core.ports import Worker
from trainer.jobs import row as rows
from trainer.jobs import write_row as write
from trainer.jobs.row import requirements

KEY = "training_runs/0b8e1a52-2b1e-4a57-9a3e-6a1c6bb8f0aa/3/checkpoints/epoch-00007-ab.pt"
ROW = {
    "id": "0b8e1a52-2b1e-4a57-9a3e-6a1c6bb8f0aa",
    "run_name": "nuts",
    "data_yaml": "storage:datasets/p/s/data.yaml",
    "base_model": "YOLOv8n",
    "configuration": {"epochs": 3},
    "priority": 2,
    "attempt": 4,
    "checkpoint": {"epoch": 7, "sha256": "ab", "bytes": 12, "key": KEY},
    "status": "running",
}


def test_row_becomes_job():
    job = rows.job_of(ROW)
    assert job.id == ROW["id"]
    assert job.request == RunRequest(
        data_yaml="storage:datasets/p/s/data.yaml",
        base_model="YOLOv8n",
        configuration={"epochs": 3},
        name="nuts",
        priority=2,
    )
    assert (job.attempt, job.gpus) == (4, 1)
    assert job.checkpoint == Checkpoint(epoch=7, sha256="ab", bytes=12, key=KEY)


def test_row_with_only_an_id_becomes_job():
    job = rows.job_of({"id": "x"})
    assert job.request == RunRequest(data_yaml=None)
    assert (job.attempt, job.checkpoint, job.gpus) == (0, None, 1)


@pytest.mark.parametrize("nonsense", ["x", 1.5, True, [], {}, [[]], math.nan, math.inf, -1, {"a": None}, None])
def test_row_with_invalid_values_becomes_job(nonsense):
    job = rows.job_of(dict.fromkeys(ROW, nonsense) | {"id": "x"})
    assert job.request.configuration is nonsense
    assert isinstance(job.attempt, int)
    assert job.request.data_yaml is None or isinstance(job.request.data_yaml, str)


@pytest.mark.parametrize("run_id", [None, "", 7, ["x"], "../x", "a/b", "a b", "x" * 65, "x\x00", "é", math.nan])
def test_row_without_valid_id_raises_unavailable(run_id):
    with pytest.raises(Unavailable, match="without a valid id"):
        rows.job_of({"id": run_id, "status": "queued"})


@pytest.mark.parametrize("attempt", [-1, 1_000_001, 2**31 - 1])
def test_run_with_attempt_out_of_range_is_unreadable(attempt):
    assert (
        f"attempt = {attempt}: must be from 0 to 1000000"
        in rows.job_of({"id": "x", "attempt": attempt}).request.unreadable
    )


def test_unreadable_row_becomes_job_with_reason():
    job = rows.job_of({"id": "x", "attempt": 2}, "The row is larger than 4 MiB.")
    assert (job.id, job.attempt, job.request.unreadable) == ("x", 2, "The row is larger than 4 MiB.")


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"epoch": 1e300, "sha256": "ab", "bytes": 12, "key": KEY},
        {"epoch": 10**400, "sha256": "ab", "bytes": 12, "key": KEY},
        {"epoch": -1, "sha256": "ab", "bytes": 12, "key": KEY},
        {"epoch": 7, "sha256": "ab", "bytes": -12, "key": KEY},
        {"epoch": 7, "sha256": ["ab"], "bytes": 12, "key": KEY},
        {"epoch": 7, "sha256": "ab", "bytes": 12, "key": {"a": 1}},
        {"epoch": 7, "sha256": "ab", "bytes": 12, "key": "training_runs/of-another-run/1/weights/best.pt"},
        {"epoch": 7, "sha256": "ab", "bytes": 12, "key": f"training_runs/{ROW['id']}/../x/1/weights/best.pt"},
        {"epoch": 7, "sha256": "ab", "bytes": 12, "key": f"training_runs/{ROW['id']}/1/checkpoints/.."},
        {"epoch": 7, "sha256": "ab", "bytes": 12, "key": f"training_runs/{ROW['id']}/{'9' * 5000}/checkpoints/e.pt"},
        {"epoch": 7, "sha256": "ab", "bytes": 12, "key": f"training_runs/{ROW['id']}/1/best.pt"},
        {"epoch": 7, "sha256": "ab", "bytes": 12, "key": ""},
    ],
)  # fmt: skip
def test_invalid_checkpoint_or_checkpoint_of_another_run_is_ignored(checkpoint):
    assert rows.job_of({"id": ROW["id"], "checkpoint": checkpoint}).checkpoint is None


@pytest.mark.parametrize(
    ("created_at", "started_at", "waited"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:02.5+00:00", 2.5),
        ("2026-01-02T00:00:00+00:00", "2026-01-01T00:00:00+00:00", 0.0),
        ("infinity", "2026-01-01T00:00:00+00:00", None),
        ("-infinity", "infinity", None),
        ("0044-03-15T00:00:00 BC", "2026-01-01T00:00:00+00:00", None),
        ("294276-12-31T23:59:59+00:00", "294276-12-31T23:59:59+00:00", None),
        ("2026-01-01", "2026-01-01T00:00:00+00:00", None),
    ],
)
def test_waiting_time_is_computed_from_valid_timestamps(created_at, started_at, waited):
    assert rows.job_of({"id": "x", "created_at": created_at, "started_at": started_at}).waited == waited


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": 1}', {"a": 1}), ("null", None), ('"text"', "text"), (None, None), ({"a": 1}, {"a": 1})],
)
def test_json_column_is_read_from_its_text(text, value):
    assert rows.json_column("configuration", text) == value


@pytest.mark.parametrize("text", ["", "{", "NaN", "9" * 5000, "[" * 1500, "x" * 1_000_001])
def test_invalid_json_column_stays_text(text):
    assert rows.json_column("configuration", text) == text
    assert isinstance(rows.json_column("configuration", text), rows.UnreadJson)


def test_length_limit_does_not_apply_to_results():
    text = json.dumps(["x" * 2_000_000])
    assert rows.json_column("results", text) == json.loads(text)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"name": "x" * 1001}, "run_name: longer than 1000 characters"),
        ({"base_model": "x" * 1001}, "base_model: longer than 1000 characters"),
        ({"data_yaml": "x" * 10_001}, "data_yaml: longer than 10000 characters"),
        ({"configuration": json.loads("[" * 33 + "]" * 33)}, "configuration: nested deeper than 32 levels"),
        ({"configuration": {"text": "x" * 1_000_000}}, "configuration: longer than 65536 characters"),
        (
            {"configuration": {"epochs": 10**401}},
            "configuration: 10000000000000000000 is not a number that can be stored; it has more than 400",
        ),
    ],
)
def test_request_over_limits_is_rejected(request_, reason):
    with pytest.raises(BadRequest, match=reason):
        write.insert_of(RunRequest(**{"data_yaml": "d", **request_}))


def test_lease_duration_is_counted_from_the_start_of_the_claim():
    lease = rows.lease_of(rows.job_of(ROW), "w1", "c1", 60, asked_at=1000.0)
    assert (lease.worker_id, lease.claim_id, lease.seconds, lease.trusted_until) == ("w1", "c1", 60, 1060.0)
    assert lease.job == rows.job_of(ROW)


def test_stored_checkpoint_is_read_unchanged():
    checkpoint = Checkpoint(epoch=7, sha256="ab", bytes=12, key="k")
    assert rows.checkpoint_of(json.loads(json.dumps(write.checkpoint_json(checkpoint)))) == checkpoint


def test_local_checkpoint_is_not_written_to_row():
    assert write.checkpoint_json(Checkpoint(epoch=7, sha256="ab", bytes=12)) is None
    assert write.checkpoint_json(None) is None


@pytest.mark.parametrize(
    ("outcome", "columns"),
    [
        (Completed(results={"mAP": 0.5}, trained_model_url="u"), (Status.COMPLETED, {"mAP": 0.5}, "u", None)),
        (Completed(results={}, trained_model_url=None), (Status.COMPLETED, {}, None, None)),
        (Failed(message="No labels."), (Status.FAILED, {}, None, "No labels.")),
        (Retry(message="Killed.", results={"log": "x"}), (Status.QUEUED, {"log": "x"}, None, "Killed.")),
        (Canceled(), (Status.CANCELED, {}, None, "Canceled by user.")),
    ],
)
def test_outcome_becomes_columns(outcome, columns):
    written = write.outcome_columns(outcome)
    assert tuple(written.values())[:4] == columns


def test_request_becomes_queued_row():
    request = RunRequest(data_yaml="d", base_model="m", configuration={"epochs": 1}, name="n", priority=3)
    assert write.insert_of(request) == {
        "run_name": "n", "data_yaml": "d", "base_model": "m", "configuration": {"epochs": 1}, "priority": 3,
        "run_group": None, "run_tags": [], "status": "queued",
    }  # fmt: skip


@pytest.mark.parametrize("priority", [2**31, -(2**31), True])
def test_priority_out_of_range_is_rejected(priority):
    with pytest.raises(BadRequest, match="priority"):
        write.insert_of(RunRequest(data_yaml="d", priority=priority))


def test_event_becomes_columns_of_its_row():
    event = RunEvent(seq=3, at="2026-01-01T00:00:00+00:00", kind="warning", data={"message": "a\x00"})
    assert write.events_json([event]) == [
        {"seq": 3, "at": "2026-01-01T00:00:00+00:00", "kind": "warning", "data": {"message": "a\ufffd"}},
    ]


def test_worker_offers_capabilities_and_known_hardware():
    worker = Worker(
        id="w",
        capabilities={"gpus": 2, "gpu_memory_gb": 24.0},
        hardware={"gpu_name": "A", "status": "x", "ram_gb": 3},
    )
    assert write.offer_json(worker) == {"gpus": 2, "gpu_memory_gb": 24.0, "hardware": {"gpu_name": "A", "ram_gb": 3}}


@pytest.mark.parametrize(
    ("configuration", "gpus", "memory"),
    [
        (None, 0, 0),
        ({"requires": {"gpus": 2, "gpu_memory_gb": "79.5"}}, 2, 80),
        ({"requires": {"gpus": " 2 "}}, 2, 0),
        ({"requires": {"gpus": "2 GPUs", "gpu_memory_gb": "٣"}}, 0, 0),
        ({"requires": {"gpus": math.inf, "gpu_memory_gb": math.nan}}, 0, 0),
        ({"requires": {"gpus": True, "gpu_memory_gb": -5}}, 0, 0),
        ({"requires": {"gpus": 10**400}}, 0, 0),
        ({"device": "0,1,2"}, 3, 0),
        ({"device": "cuda:0,1"}, 2, 0),
        ({"device": "-1,-1"}, 2, 0),
        ({"device": [0]}, 0, 0),
        ({"device": "cpu"}, 0, 0),
        ({"device": ",,"}, 0, 0),
        ({"device": "0,1", "requires": {"gpus": 1}}, 2, 0),
        ('{"requires": {"gpus": 2}}', 2, 0),
        ('"{}"', 0, 0),
        ("[" * 100_000, 0, 0),
        ("9" * 10_000, 0, 0),
    ],
)
def test_requirements_are_read_from_configuration(configuration, gpus, memory):
    needed = requirements(configuration)
    assert (needed.gpus, needed.gpu_memory_gb) == (gpus, memory)


def test_job_needs_at_least_one_gpu():
    assert rows.job_of({"id": "x", "configuration": {"device": "cpu"}}).gpus == 1
    assert rows.job_of({"id": "x", "configuration": {"requires": {"gpus": "2.5"}}}).gpus == 3


class Named:
    def __str__(self):
        return "named\x00"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("plain Ω 🐕", "plain Ω 🐕"),
        ("a\x00b", "a\ufffdb"),
        ("\ud83d", "\ufffd"),
        (math.nan, None),
        (-math.inf, None),
        (True, True),
        (10**30, 10**30),
        ((1, 2.5, "x"), [1, 2.5, "x"]),
        ({1: {None: math.nan}}, {"1": {"None": None}}),
        ({"a\x00": 1}, {"a\ufffd": 1}),
        (b"bytes", "b'bytes'"),
        (Named(), "named\ufffd"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
        (frozenset({3}), [3]),
    ],
)
def test_every_value_is_converted_to_storable_json(value, stored):
    assert write.clean(value) == stored
    json.dumps(write.clean(value), allow_nan=False).encode()


def test_endless_nesting_is_truncated_at_32_levels():
    endless = []
    endless.append(endless)
    assert json.dumps(write.clean(endless)).count("[") == 32
