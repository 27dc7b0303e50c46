"""Plans as JSON."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.request.reading import PLANNED, RUN, WEB, parse
from trainer.core.dataset import SplitRequest, Task
from trainer.core.errors import BadRequest
from trainer.core.job import RunRequest
from trainer.core.plan import TrainPlan
from trainer.request.configuration import ARGUMENTS
from trainer.request.parse import plan_of
from trainer.request.train_arguments import IGNORED, REFUSED

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_words = st.sampled_from(
    [
        "yolo11n",
        "-1",
        "16",
        "cpu",
        "0,1",
        "true",
        "auto",
        "storage:x",
        "../x.pt",
        RUN,
        "{",
        '{"epochs": "3"}',
        "1e999",
        "onnx",
    ],
)
_json = st.recursive(
    _scalars | _words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_keys = st.sampled_from(
    sorted(
        {*ARGUMENTS, *REFUSED, *IGNORED, *PLANNED, *WEB}
        | {
            "export",
            "exports",
            "predictions",
            "requires",
            "split_seed",
            "advanced_config",
            "hyperparameters",
            "lr",
            "weights",
        },
    ),
) | st.text(max_size=12)
_configurations = st.dictionaries(_keys, _json | st.dictionaries(_keys, _json, max_size=4), max_size=6)
_few = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_few
@given(_configurations | _json | _configurations.map(json.dumps), st.none() | st.text(max_size=20), st.none() | _words)
def test_any_request_becomes_plan_or_raises_bad_request(configuration, data_yaml, base_model):
    found = plan_or_problems(configuration, data_yaml, base_model)
    if isinstance(found, TrainPlan):
        assert TrainPlan.from_json(json.loads(json.dumps(found.as_json(), allow_nan=False))) == found
        lines = found.warnings
    else:
        assert found
        lines = found
    assert all(len(line) < 1000 and line.isprintable() for line in lines)


def plan_or_problems(configuration, data_yaml, base_model):
    try:
        return parse(configuration, data_yaml=data_yaml, base_model=base_model)
    except BadRequest as refused:
        return refused.problems


_one_setting = st.one_of(
    *(
        st.tuples(st.just(name), values)
        for name, values in {
            "epochs": st.integers(1, 100_000),
            "batch": st.integers(1, 4096) | st.just(-1) | st.floats(0.01, 0.99),
            "imgsz": st.integers(32, 8192),
            "task": st.sampled_from(list(map(str, Task))),
            "device": st.sampled_from([0, "cpu", [0, 1], "auto"]),
            "split": st.floats(0.1, 0.9).map(lambda share: {"train_ratio": share, "splits": {"7": "val"}}),
            "export": st.just(["torchscript"]),
            "predictions": st.booleans(),
            "model": st.sampled_from(["yolo11n", "yolo26s.yaml", "mine.pt", "storage:best.pt", RUN]),
            "freeze": st.just([1, "2.cv1"]) | st.integers(0, 10),
            "lr0": st.floats(1e-6, 1),
            "unknown": st.integers(),
        }.items()
    ),
)


@_few
@given(st.lists(_one_setting, max_size=8).map(dict))
def test_plan_is_unchanged_after_json_round_trip(configuration):
    plan = parse(configuration)
    assert TrainPlan.from_json(json.loads(json.dumps(plan.as_json()))) == plan


@pytest.mark.parametrize("data", [{}, {"model": {"kind": "evil"}}])
def test_invalid_plan_is_rejected(data):
    with pytest.raises((KeyError, ValueError)):
        TrainPlan.from_json(data)


def test_unknown_kind_of_model_is_rejected():
    data = parse().as_json() | {"model": {"kind": "evil"}}
    with pytest.raises(ValueError, match="evil"):
        TrainPlan.from_json(data)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://user:pw@host.example/a/b.zip?token=t#f", "https://host.example/a/b.zip"),
        ("HTTP://u@host.example?token=t", "HTTP://host.example"),
        ("/data/a?b#c@d/data.yaml", "/data/a?b#c@d/data.yaml"),
        ("storage:datasets/x@y/data.yaml", "storage:datasets/x@y/data.yaml"),
    ],
)
def test_recorded_plan_has_no_credentials_in_urls(source, shown):
    plan = plan_of(RunRequest(data_yaml=source))

    assert plan.sources == (source,)
    assert plan.recorded()["sources"] == [shown]
    assert plan.without_secrets().sources == (shown,)


def test_split_by_image_name_is_recorded_as_count_and_digest():
    """An edited split changes the digest, even if the number of images is the same."""

    def split_plan(**assigned):
        split = SplitRequest(train_ratio=0.8, assigned={f"{name}.jpg": place for name, place in assigned.items()})
        return replace(plan_of(RunRequest(data_yaml="d/data.yaml")), split=split)

    plan = split_plan(a="train", b="val")
    recorded = plan.recorded()["split"]["assigned"]

    assert recorded.startswith("2 images (sha256 ")
    assert recorded == split_plan(b="val", a="train").recorded()["split"]["assigned"]
    assert recorded != split_plan(a="val", b="train").recorded()["split"]["assigned"]
    assert TrainPlan.from_json(plan.as_json()) == plan


@pytest.mark.parametrize(
    ("row", "workers", "chosen"), [({}, 3, True), ({"workers": 0}, 0, False), ({"workers": 16}, 16, False)]
)
def test_host_sets_number_of_loader_processes_unless_row_sets_it(row, workers, chosen):
    plan = plan_of(RunRequest(data_yaml="/data/x.yaml", configuration=row), workers=3)

    assert plan.args["workers"] == workers
    assert ("workers" in plan.chosen) is chosen


def test_ultralytics_chooses_number_of_loader_processes_without_host_setting():
    assert "workers" not in plan_of(RunRequest(data_yaml="/data/x.yaml")).args
