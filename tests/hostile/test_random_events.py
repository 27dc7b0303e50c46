"""Any line of a training process becomes a valid event or a `WireError`. Another error would end the reading thread."""

from __future__ import annotations

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.core.events import Finished
from trainer.core.job import JsonObject
from trainer.core.text import CONTROLS
from trainer.training.wire import ChildEvent, Report, WireError, decode_event
from trainer.worker.event_sink import describe

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([3_000_000_000, 2**63, -(2**63), 10**400, 1e308, True, -0.0])
)
TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from(["training", "uploading", "\ud800", "\x1b[2J\u202e", "a" * 5000])
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=10,
)
KINDS = ["phase", "transfer", "batch", "epoch", "checkpoint", "warning", "finished", "stopped", "crashed", "other"]
FIELDS = [
    *(
        "phase",
        "seconds",
        "files",
        "bytes",
        "rate",
        "epoch",
        "total_epochs",
        "batch",
        "total_batches",
        "losses",
        "metrics",
    ),
    *("images_per_second", "gpu_memory", "eta_seconds", "sha256", "key", "code", "message", "error", "traceback"),
    *("best", "last", "report"),
]
WEIGHTS = st.fixed_dictionaries({"sha256": TEXTS, "bytes": NUMBERS})
REPORTS = st.dictionaries(st.sampled_from([*Report.model_fields, "artifacts", "plan"]), VALUES, max_size=5)
METRICS = st.dictionaries(TEXTS, NUMBERS, max_size=3)
FIELD_VALUES = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS)},
    optional={name: st.one_of(VALUES, NUMBERS, TEXTS, WEIGHTS, REPORTS, METRICS) for name in FIELDS},
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(FIELD_VALUES, VALUES))
def test_random_json_becomes_bounded_event_or_wire_error(value):
    check(json.dumps(value).encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_become_bounded_event_or_wire_error(line):
    check(line)


def check(line: bytes) -> None:
    event = decoded(line)
    if isinstance(event, WireError):
        assert len(str(event)) < 2000
        assert not CONTROLS.search(str(event))
        return
    assert isinstance(event, ChildEvent)
    assert "\n[" not in describe(event)
    check_values(vars(event))
    if isinstance(event, Finished):
        assert set(event.report) <= set(Report.model_fields)


def decoded(line: bytes) -> ChildEvent | WireError:
    try:
        return decode_event(line)
    except WireError as error:
        return error


def check_values(value: object) -> None:
    """Check that PostgreSQL can store the value and that a terminal can show it."""
    if isinstance(value, str):
        assert not CONTROLS.search(value)
        value.encode()
    elif isinstance(value, int):
        assert -(2**63) <= value < 2**63
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_values(name)
            check_values(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_values(item)
    elif hasattr(value, "__dataclass_fields__"):
        content: JsonObject = vars(value)
        check_values(content)
