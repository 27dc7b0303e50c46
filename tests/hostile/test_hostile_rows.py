"""Hostile rows: reading any content of any column is fast and raises only expected errors."""

import contextlib
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.core.errors import BadRequest
from trainer.core.job import RunRequest
from trainer.jobs import row as rows
from trainer.jobs import write_row as write
from trainer.jobs.row import requirements
from trainer.request.configuration import ARGUMENTS
from trainer.request.parse import plan_of
from trainer.request.train_arguments import IGNORED, REFUSED

RUN = "0b8e1a52-2b1e-4a57-9a3e-6a1c6bb8f0aa"


def deep_list(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def deep_object(levels, key="a"):
    value = 1
    for _ in range(levels):
        value = {key: value}
    return value


HARMFUL = {
    "1,500 nested lists": deep_list(1500),
    "1,500 nested objects": deep_object(1500),
    "1,500 nested splits": deep_object(1500, "split"),
    "1,500 nested sections": deep_object(1500, "augmentation"),
    "1,500 nested lists as text": "[" * 1500 + "]" * 1500,
    "100,000 brackets as text": "[" * 100_000,
    "30,000 keys": {f"key {n}": n for n in range(30_000)},
    "100,000 items": list(range(100_000)),
    "number with 5,000 digits": 10**4999,
    "number with 300 digits": 10**299,
    "5,000 digits as text": "9" * 5000,
    "infinity": float("inf"),
    "NaN": float("nan"),
    "huge exponent as text": '{"epochs": 1e5000}',
    "lone surrogates": "\ud800\udfff" * 100,
    "NUL characters": "\x00" * 1000,
    "10 million characters": "x" * 10_000_000,
    "4 million commas": "," * 4_000_000,
    "4 million numbers": "1," * 2_000_000,
    "4 million spaces": " " * 4_000_000,
    "4 million slashes": "//" * 2_000_000,
    "4 million quotes": '"' * 4_000_000,
    "true": True,
    "object": {"a": {}},
}
SETTINGS = [
    *("data", "model", "task", "device", "compute", "epochs", "batch", "imgsz", "pretrained", "split", "exports"),
    *(
        "predictions",
        "requires",
        "optimizer",
        "augmentation",
        "freeze",
        "splits",
        "unknown_setting",
        "run_name",
        "split_seed",
    ),
]


def read(columns):
    """Read a row as the worker does. Return the problems of the run, or an empty tuple for a valid plan."""
    job = rows.job_of({"id": RUN, "attempt": 1, **columns})
    try:
        plan_of(job.request)
    except BadRequest as refused:
        return refused.problems
    return ()


def read_quickly(columns, seconds):
    began = time.process_time()
    problems = read(columns)
    assert time.process_time() - began < seconds
    assert all(len(problem) < 2000 for problem in problems)


@pytest.mark.parametrize("harm", HARMFUL)
@pytest.mark.parametrize(
    "column", ["configuration", "data_yaml", "base_model", "run_name", "priority", "checkpoint", "last_reported_epoch"]
)
def test_any_column_value_is_read_or_rejected_fast(column, harm):
    read_quickly({"data_yaml": "d", column: HARMFUL[harm]}, 3)


@pytest.mark.parametrize("harm", HARMFUL)
def test_any_setting_value_is_read_or_rejected_fast(harm):
    for name in SETTINGS:
        read_quickly({"data_yaml": "d", "configuration": {name: HARMFUL[harm]}}, 3)
        read_quickly({"data_yaml": "d", "configuration": {"augmentation": {name: HARMFUL[harm]}}}, 3)
    read_quickly({"data_yaml": "d", "configuration": {"split": {"splits": HARMFUL[harm]}}}, 3)


@pytest.mark.parametrize("harm", HARMFUL)
def test_any_requirements_are_read_fast(harm):
    began = time.process_time()
    for configuration in (HARMFUL[harm], {"device": HARMFUL[harm]}, {"requires": {"gpus": HARMFUL[harm]}}):
        requirements(configuration)
    assert time.process_time() - began < 3


_harmful = st.sampled_from(sorted(HARMFUL)[::2]).map(
    lambda name: HARMFUL[name]
)  # the values are sampled by name, because they are too large to print
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters() | _harmful
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5)
)
_names = st.sampled_from(sorted([*SETTINGS, *ARGUMENTS, *REFUSED, *IGNORED])) | st.text()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(_names, _values | st.dictionaries(_names, _values, max_size=3), max_size=5) | _values,
    st.fixed_dictionaries({}, optional=dict.fromkeys(
        ["data_yaml", "base_model", "run_name", "priority", "attempt", "checkpoint", "last_reported_epoch", "created_at", "started_at"], _values,
    )),
)  # fmt: skip
def test_any_row_becomes_plan_or_raises_bad_request(configuration, columns):
    read({"configuration": configuration, **columns})


@pytest.mark.parametrize("harm", HARMFUL)
def test_request_is_rejected_or_its_row_has_a_limited_size(harm):
    """`enqueue` rejects the request, or the JSON of the new row has a limited size."""
    request = RunRequest(data_yaml="d", configuration={"notes": HARMFUL[harm]})
    with contextlib.suppress(BadRequest):
        written = json.dumps(write.insert_of(request), allow_nan=False)
        assert len(written) < 100_000 * 6
