from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from trainer.core import events
from trainer.core.dataset import Finding, PreparedDataset, Task
from trainer.core.events import (
    BatchProgress,
    CheckpointSaved,
    ChildStopped,
    Crashed,
    EpochFinished,
    Finished,
    Phase,
    PhaseStarted,
    Warned,
    WeightsFile,
)
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopReason
from trainer.training.wire import (
    LONGEST_LINE,
    WireError,
    decode_command,
    decode_event,
    encode_event,
    encode_order,
    encode_stop,
)

BEST = WeightsFile(sha256="ab" * 32, bytes=2**33)
ONE_OF_EACH = [
    PhaseStarted(phase=Phase.LOADING, seconds=1.5),
    PhaseStarted(phase=Phase.STARTING),
    BatchProgress(
        phase=Phase.TRAINING,
        epoch=1,
        total_epochs=3,
        batch=2,
        total_batches=8,
        losses={"box_loss": 1.25},
        images_per_second=90.0,
        gpu_memory=2**30,
        eta_seconds=12.0,
    ),
    EpochFinished(epoch=2, total_epochs=3, metrics={"metrics/mAP50(B)": 0.5, "lr/pg0": 1e-5}, seconds=4.0),
    CheckpointSaved(epoch=2, sha256="ab" * 32, bytes=2**33),
    Warned(code="oom_halved", message="Batch halved to 8 — out of memory"),
    Finished(best=BEST, last=BEST, report={"mAP": 0.5, "curves": {"x": [0.0, 1.0]}, "best_epoch": None, "batch": 4}),
    ChildStopped(),
    Crashed(error="ValueError", message="no\nlabels", traceback="Traceback …\n", phase=Phase.SCANNING),
]


@pytest.fixture
def order():
    dataset = PreparedDataset(
        root=Path("/data/vue é"),
        data=Path("/data/vue é/data.yaml"),
        task=Task.SEGMENT,
        names=("cat", "chien\n"),
        images={"train": 3, "val": 1},
        fingerprint="f" * 64,
        findings=(Finding(level="note", code="n", message="m"),),
        summary={"big": list(range(1000))},
    )
    plan = TrainPlan(
        sources=("https://user:secret@example.org/d.zip?token=secret",),
        model=Architecture(stem="yolo11n"),
        task=None,
        epochs=3,
        batch=0.5,
        imgsz=64,
        device=None,
        args={"lr0": 0.01, "freeze": [1, "2.cv1"], "amp": True},
    )
    return TrainingOrder(
        plan=plan,
        model=Path("/models/yolo11n.pt"),
        dataset=dataset,
        run_dir=Path("/runs/train_1"),
        devices=(0, 3),
        resume=Path("/runs/last.pt"),
        best_of=Path("/runs/best.pt"),
        setup={"model": "yolo11n"},
        last_reported_epoch=7,
    )


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda e: e.kind)
def test_every_event_is_unchanged_after_round_trip(event):
    line = encode_event(event)

    assert decode_event(line) == event
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1


def test_examples_cover_every_event():
    assert {type(event) for event in ONE_OF_EACH} == set(events.Event.__args__) - {events.TransferProgress}


def test_nan_and_infinity_are_removed_from_mappings():
    line = encode_event(
        BatchProgress(
            phase=Phase.TRAINING,
            epoch=1,
            total_epochs=1,
            batch=1,
            total_batches=1,
            losses={"box_loss": float("nan"), "cls_loss": 1.0},
            eta_seconds=float("inf"),
        ),
    )

    event = decode_event(line)

    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"the JSON contains {name}"))
    assert event.losses == {"cls_loss": 1.0}
    assert event.eta_seconds is None


def test_nan_and_infinity_become_null_in_lists():
    event = decode_event(
        encode_event(Finished(best=BEST, last=BEST, report={"curves": {"a": [0.0, float("-inf"), 1]}}))
    )

    assert event.report == {"curves": {"a": [0.0, None, 1]}}


def test_received_nan_is_removed():
    event = decode_event(b'{"kind":"epoch","epoch":1,"total_epochs":2,"seconds":1,"metrics":{"a":NaN,"b":1e999,"c":2}}')

    assert event.metrics == {"c": 2.0}


def test_null_characters_and_surrogates_are_replaced():
    event = decode_event(b'{"kind":"warning","code":"x","message":"a\\u0000b\\ud800c"}')

    event.message.encode()
    assert "\0" not in event.message
    assert event.message.startswith("a")
    assert event.message.endswith("c")


def test_long_texts_are_truncated_before_they_are_sent():
    """The message of an exception can have megabytes, for example the list of all missing keys of a state."""
    line = encode_event(Crashed(error="E", message="é" * 2**20, traceback="t" * 2**20, phase=Phase.LOADING))

    event = decode_event(line)

    assert len(line) < 64 * 1024
    assert (len(event.message), len(event.traceback)) == (4000, 8000)
    assert event.message.endswith("é…")


def test_unknown_keys_are_ignored():
    assert decode_event(b'{"kind":"stopped","since":"2031"}') == ChildStopped()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"null",
        b"{",
        b'{"kind":"epoch"}',
        b'{"kind":"unheard_of"}',
        b'{"no":"kind"}',
        b'{"kind":["epoch"]}',
        b'{"kind":"phase","phase":"sleeping"}',
        b'{"kind":"checkpoint","epoch":"many","sha256":"","bytes":1,"path":""}',
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda line: line[:30].decode("ascii", "replace") or "empty",
)
def test_invalid_event_is_rejected_with_short_reason(line):
    with pytest.raises(WireError) as refused:
        decode_event(line)

    assert len(str(refused.value)) < 700


def test_error_about_long_line_quotes_its_start():
    with pytest.raises(WireError, match="secretless nonsense") as refused:
        decode_event(b"secretless nonsense " * 1000)

    assert len(str(refused.value)) < 400


def test_too_long_line_is_rejected():
    with pytest.raises(WireError, match="a line has at most"):
        decode_event(b'{"kind":"warning","code":"' + b"x" * LONGEST_LINE + b'"}')


def test_sent_training_order_omits_secrets_findings_and_summary(order):
    line = encode_order(order)
    arrived = decode_command(line)

    assert line.count(b"\n") == 1
    assert len(line) < 1500
    assert b"secret" not in line
    assert arrived.plan == dataclasses.replace(order.plan, sources=("https://example.org/d.zip",))
    assert arrived.dataset == dataclasses.replace(order.dataset, findings=(), summary={})
    assert dataclasses.replace(arrived, plan=order.plan, dataset=order.dataset) == order


def test_training_order_without_resume_or_devices_is_accepted(order):
    arrived = decode_command(encode_order(dataclasses.replace(order, resume=None, devices=())))

    assert arrived.resume is None
    assert arrived.devices == ()


@pytest.mark.parametrize("reason", list(StopReason))
def test_stop_command_keeps_its_reason(reason):
    assert decode_command(encode_stop(reason)) is reason


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"{}",
        b'{"kind":"dance"}',
        b'{"kind":"stop"}',
        b'{"kind":"stop","reason":"boredom"}',
        b'{"kind":"train"}',
        b'{"kind":"train","dataset":[],"plan":{}}',
    ],
)
def test_invalid_command_is_rejected_with_reason_on_one_line(line):
    with pytest.raises(WireError, match="is not") as refused:
        decode_command(line)

    assert "\n" not in str(refused.value)
