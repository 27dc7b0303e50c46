"""Parsing of a row into a plan."""

import json

import pytest

from tests.unit.request.reading import WEB, parse, problems
from trainer.core.model import OfficialModel
from trainer.request.train_arguments import REFUSED


def test_row_of_web_app_becomes_plan_without_warnings():
    plan = parse(WEB, data_yaml="storage:datasets/p/s/data.yaml", base_model="YOLOv8s")
    assert plan.sources == ("storage:datasets/p/s/data.yaml",)
    assert plan.model == OfficialModel(stem="yolov8s")
    assert (plan.epochs, plan.batch, plan.imgsz, plan.device, plan.task) == (100, 16, 640, (0,), None)
    assert plan.args["lr0"] == 0.001
    assert plan.args["optimizer"] == "Adam"
    assert plan.args["degrees"] == 5
    assert "preset" not in plan.args
    assert len(plan.args) == 2 + 13
    assert plan.chosen == ()
    assert plan.warnings == ()


def test_empty_row_has_defaults_that_are_listed_as_chosen_by_service():
    plan = parse(None)
    assert plan.model == OfficialModel(stem="yolov8s")
    assert (plan.epochs, plan.batch, plan.imgsz, plan.device, plan.task) == (100, 16, 640, None, None)
    assert plan.args == {"optimizer": "Adam", "lr0": 0.001}
    assert set(plan.chosen) == {"base_model", "epochs", "batch", "imgsz", "optimizer", "lr0"}


def test_null_setting_means_default():
    assert parse(dict.fromkeys(WEB)) == parse(None)
    assert parse({"augmentation": {"mosaic": None}}) == parse(None)


def test_settings_of_row_are_not_listed_as_chosen_by_service():
    assert parse({"epochs": 100, "lr0": 0.001}).chosen == ("base_model", "batch", "imgsz", "optimizer")


@pytest.mark.parametrize("times", [1, 2])
def test_configuration_as_nested_json_text_is_read(times):
    text = {"epochs": 7, "augmentation": json.dumps({"mosaic": 0.5})}
    for _ in range(times):
        text = json.dumps(text)
    plan = parse(text)
    assert plan.epochs == 7
    assert plan.args["mosaic"] == 0.5


@pytest.mark.parametrize("text", ["", "  ", "{}", "null", '""', "[]", None, {}, []])
def test_empty_configuration_means_defaults(text):
    assert parse(text) == parse(None)


@pytest.mark.parametrize(
    "raw", ["{epochs: 3}", "not json", "[1]", "3", [1], 3, True, '"x"', "[" * 50_000, "{" * 9, "1" * 5000]
)
def test_configuration_that_is_not_an_object_is_rejected(raw):
    (problem,) = problems(raw)
    assert problem.startswith("configuration = ")
    assert len(problem) < 200


def test_configuration_of_more_than_65536_characters_is_rejected():
    (problem,) = problems('{"epochs": 3' + " " * 2_000_000 + "}")
    assert "65536 characters" in problem


def test_every_wrong_value_is_reported_with_field_value_and_rule():
    found = problems(
        {
            "epochs": 0,
            "batchSize": 16.5,
            "imgSize": [640, 480],
            "learningRate": float("nan"),
            "augmentation": {"mosaic": 3},
        },
        base_model="sam2_b",
        data_yaml=None,
    )
    assert {problem.partition(":")[0] for problem in found} == {
        *("epochs = 0", "batchSize = 16.5", "imgSize = [640, 480]", "learningRate = nan", "augmentation.mosaic = 3"),
        *("base_model = 'sam2_b'", "data_yaml"),
    }
    assert "epochs = 0: must be a whole number from 1 to 100000" in found


@pytest.mark.parametrize(
    "configuration",
    [
        *({"epochs": bad} for bad in (0, -1, 100_001, 1.5, "many", True, [3], {"a": 1}, float("inf"), 10**5000)),
        *({"imgsz": bad} for bad in (31, 8193, 0, "big", [640], 640.5)),
        *({"batch": bad} for bad in (0, -2, 5000, 1.5)),
        *({"lr0": bad} for bad in (0, -1, 2, "x")),
        *({"workers": bad} for bad in (-1, 65)),
        *({"predictions": bad} for bad in ("perhaps", 7)),
        *({"requires": bad} for bad in (["gpu"], "gpu", {"gpus": "two"}, {"gpu": 1}, {"gpu_memory_gb": -1})),
        {"optimizer": "Lion"},
    ],
)
def test_invalid_value_has_one_short_message(configuration):
    (problem,) = problems(configuration)
    (name,) = configuration
    assert problem.startswith(f"{name} = ")
    assert "must be" in problem
    assert len(problem) < 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("project", "/etc"), ("name", "../../x"), ("save_dir", "/etc"), ("exist_ok", True), ("resume", True)),
        *(
            ("resume", "/tmp/evil.pt"),
            ("resume_from_model", "/x/best.pt"),
            ("cfg", "evil.yaml"),
            ("source", "http://x"),
        ),
        *(("distill_model", "evil.pt"), ("compile", True), ("profile", True), ("quantize", 8), ("mode", "export")),
        *(("augmentations", ["x"]), ("callbacks", {"a": 1}), ("save_json", True), ("trainer", "os.system")),
    ],
)
def test_dangerous_setting_is_rejected_with_reason(name, value):
    (problem,) = problems({name: value})
    assert problem == f"{name}: this setting is not allowed; {REFUSED[name]}"
    (nested,) = problems({"hyperparameters": {name: value}})
    assert nested.startswith(f"hyperparameters.{name}: ")


@pytest.mark.parametrize(
    "harmless", [{"resume": False}, {"exist_ok": False}, {"mode": "train"}, {"name": ""}, {"cfg": None}]
)
def test_harmless_value_of_dangerous_setting_is_accepted(harmless):
    assert parse(harmless) == parse(None)


def test_weights_file_in_pretrained_is_rejected():
    (problem,) = problems({"pretrained": "s3://bucket/best.pt"})
    assert "base_model" in problem


def test_settings_of_other_ultralytics_modes_are_ignored_with_warning():
    plan = parse({"line_width": 3, "opset": 17, "tracker": "/evil.yaml"})
    assert len(plan.warnings) == 3
    assert set(plan.args) == {"optimizer", "lr0"}


def test_bayesian_search_is_ignored_with_warning():
    assert parse({"optimizationStrategy": "bayesian"}).warnings == (
        "the Bayesian search is not supported: one training uses the given values",
    )


def test_values_in_messages_are_short_and_without_credentials():
    (long,) = problems({"epochs": "x" * 10_000})
    assert len(long) < 200
    (url,) = problems(base_model="https://user:hunter2@host/best.pt?token=hunter3")
    assert "hunter" not in url
    (deep,) = problems({"epochs": json.loads("[" * 500 + "]" * 500)})
    assert len(deep) < 200
    assert all(line.isprintable() for line in problems({"epochs": "a\nb\x00\x1b[31m"}))
    assert all(line.isprintable() for line in parse({"a\nb\x00\ud800": 1}).warnings)
