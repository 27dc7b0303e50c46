"""A training process in the real sandbox sends events that would harm the worker, the row or the log."""

from __future__ import annotations

import json
import time

import psutil
import pytest

from tests.process.conftest import home, program  # noqa: F401 - fixtures
from tests.process.sandbox_host import needs_landlock
from trainer.core.errors import RunFailed
from trainer.core.events import Warned
from trainer.core.stop import Stopped, StopReason
from trainer.core.text import CONTROLS
from trainer.training.supervisor import event_dispatch
from trainer.worker.event_sink import describe

pytestmark = needs_landlock

WEIGHTS = {"path": "/x", "sha256": "ab" * 32, "bytes": 1}
BATCH = {"kind": "batch", "phase": "training", "epoch": 1, "total_epochs": 2, "batch": 1, "total_batches": 2}
EPOCH = {"kind": "epoch", "epoch": 1, "total_epochs": 2, "seconds": 1.0, "metrics": {}}
CHECKPOINT = {"kind": "checkpoint", "epoch": 1, "sha256": "ab" * 32, "bytes": 1, "path": "/x"}
TRANSFER = {"kind": "transfer", "phase": "training", "files": 1, "total_files": 1, "bytes": 1, "total_bytes": 1}
REFUSED = {
    "an epoch beyond int4": EPOCH | {"epoch": 3_000_000_000},
    "a negative epoch": EPOCH | {"epoch": -1},
    "epochs beyond int4": EPOCH | {"total_epochs": 2**31},
    "infinite seconds": EPOCH | {"seconds": float("inf")},
    "a time of 1e300 seconds": EPOCH | {"eta_seconds": 1e300},
    "a metric of 400 digits": EPOCH | {"metrics": {"a": 10**400}},
    "many metrics": EPOCH | {"metrics": {f"m{n}": 0.5 for n in range(1000)}},
    "a long metric name": EPOCH | {"metrics": {"m" * 10_000: 0.5}},
    "a long kind": {"kind": "k" * 100_000},
    "a metric name that looks like two fields": EPOCH | {"metrics": {"a status=completed": 0.5}},
    "a metric name with an escape sequence": EPOCH | {"metrics": {"a\x1b[2J": 0.5}},
    "a metric that is text": EPOCH | {"metrics": {"a": "b"}},
    "a batch beyond int4": BATCH | {"batch": 2**40},
    "memory beyond int8": BATCH | {"gpu_memory": 2**70},
    "a rate of 1e308": BATCH | {"images_per_second": 1e308},
    "a checkpoint with an epoch beyond int4": CHECKPOINT | {"epoch": 2**31},
    "a checkpoint with a size beyond int8": CHECKPOINT | {"bytes": 2**63},
    "a transfer": TRANSFER | {"rate": 1.0, "eta_seconds": None},
    "a phase of the worker": {"kind": "phase", "phase": "uploading"},
    "a batch in a phase of the worker": BATCH | {"phase": "ending"},
    "a report with metrics that are a list": {"kind": "finished", "best": WEIGHTS, "last": WEIGHTS, "report": {"metrics": [1]}},
    "a report with an odd batch": {"kind": "finished", "best": WEIGHTS, "last": WEIGHTS, "report": {"batch": {"a": 1}}},
    "a deep report": {"kind": "finished", "best": WEIGHTS, "last": WEIGHTS, "report": {"test": json.loads('{"a":' * 40 + "1" + "}" * 40)}},
}  # fmt: skip


def code_to_send(*events, then="finished()"):
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    return f"phase('training')\nwrite({lines!r})\n{then}"


@pytest.mark.parametrize("case", REFUSED)
def test_event_beyond_limits_is_dropped_with_warning(program, case):  # noqa: F811
    training = program("sends_hostile_events", code_to_send(REFUSED[case]))

    assert training.train().report == {"environment": {}, "sandbox": []}

    assert [event.kind for event in training.events] == ["phase", "warning", "finished"]
    assert training.events[1].code == "garbled_event"
    assert len(training.events[1].message) < 1000


def test_event_of_1_mib_is_dropped_with_warning(program):  # noqa: F811
    large = f"send(kind='finished', best={WEIGHTS}, last={WEIGHTS}, report={{'notes': ['x' * 2**20]}})\nfinished()"
    training = program("sends_hostile_events", large)

    assert training.train().report == {"environment": {}, "sandbox": []}

    assert [event.code for event in training.of("warning")] == ["garbled_event"]


def test_report_cannot_set_other_parts_of_results(program):  # noqa: F811
    stolen = {"artifacts": [{"name": "best.pt", "path": "other/best.pt"}], "run_dir": "/etc", "dataset": {"a": 1}}
    report = {"mAP": 0.5, "metrics": {"a": 1.0}, "plan": {}, "progress": {}, "checkpoint": 1} | stolen
    event = {"kind": "finished", "best": WEIGHTS, "last": WEIGHTS, "report": report}

    training = program("sends_hostile_events", code_to_send(event, then=""))

    assert training.train().report == {"mAP": 0.5, "metrics": {"a": 1.0}, "sandbox": []}


def test_training_cannot_set_key_of_checkpoint_and_transfer_of_phase(program):  # noqa: F811
    phase = {"kind": "phase", "phase": "loading", "files": 7, "bytes": 7, "rate": 7.0}
    training = program("sends_hostile_events", code_to_send(CHECKPOINT | {"key": "other_tenant/best.pt"}, phase))

    training.train()

    assert [event.key for event in training.of("checkpoint")] == [None]
    assert (training.of("phase")[1].files, training.of("phase")[1].bytes) == (None, None)


def test_control_characters_of_events_and_output_do_not_reach_log(program):  # noqa: F811
    odd = "a\x1b[2J\x9b31m\x07\x00\u2028\u202e\u2066b\r[2026-01-01T00:00:00Z] outcome: completed"
    code = (
        f"import os\nos.write(1, {odd.encode()!r} + b'\\n')\n"
        f"os.write(1, {odd.encode()!r} * 10 + b'\\n')\nsend(kind='warning', code={odd!r}, message={odd!r})\n"
        "finished()"
    )
    training = program("sends_hostile_events", code)

    training.train()

    (warning,) = training.of("warning")
    for text in (warning.code, warning.message, *training.lines):
        assert not CONTROLS.search(text), text
    assert warning.message.startswith("a\\x1b[2J\\x9b31m\\x07")


def test_flood_of_durable_events_ends_run_with_reason(program):  # noqa: F811
    training = program(
        "sends_hostile_events", 'while True: write(b\'{"kind":"warning","code":"","message":""}\\n\' * 1000)'
    )

    with pytest.raises(
        RunFailed, match=r"more events than a training needs \(10,0\d\d events, 0.4 MiB; the limits are 10,024 events"
    ):
        training.train()

    assert len(training.events) == 10_024


def test_gigabytes_of_events_end_run_with_reason(program):  # noqa: F811
    training = program("sends_hostile_events", "while True: send(kind='warning', code='', message='x' * 400_000)")

    with pytest.raises(RunFailed, match="the limits are 10,024 events and 16 MiB"):
        training.train()

    assert sum(len(event.message) for event in training.events) < 2**20  # long texts are truncated


def test_output_flood_is_logged_up_to_limit_and_run_continues(program, monkeypatch):  # noqa: F811
    monkeypatch.setattr(event_dispatch, "MOST_OUTPUT", 100_000)
    training = program("sends_hostile_events", "for _ in range(20_000): print('x' * 20, flush=True)\nfinished()")

    training.train()

    assert training.of("finished")
    assert sum(len(line) + 32 for line in training.lines) < 101_000
    assert training.lines[-1].endswith("further output is not logged …")


@pytest.mark.parametrize("flood", ["send(**BATCH)", "print('x' * 20, flush=True)"])
def test_flood_uses_little_of_the_processor(program, flood):  # noqa: F811
    """The first seconds may use the burst. Then the writer waits."""
    training = program("sends_hostile_events", f"BATCH = {BATCH!r}\nwhile True: {flood}")
    used = []

    def measure():
        while len(used) < 20 and min(used, default=1.0) > 0.15:
            before, began = psutil.Process().cpu_times(), time.monotonic()
            time.sleep(1)
            after = psutil.Process().cpu_times()
            used.append((after.user + after.system - before.user - before.system) / (time.monotonic() - began))
        training.stop.set(StopReason.LOST)

    training.when(lambda t: t.events or t.lines, measure)
    with pytest.raises(Stopped):
        training.train()

    assert min(used) <= 0.15  # CPU seconds per second


def test_event_text_with_newlines_stays_one_entry_of_the_log():
    forged = "a\n[2026-01-01T00:00:00.000Z] outcome: completed\r\x1b[2J"

    lines = describe(Warned(code="x", message=forged)).split("\n")

    assert lines == ["warning: code=x message=a", "    [2026-01-01T00:00:00.000Z] outcome: completed\\x0d\\x1b[2J"]
