"""Rows of the web app's dialog: every preset, cleared inputs, and stale values."""

import json

import pytest

from trainer.core.errors import BadRequest
from trainer.core.job import RunRequest
from trainer.core.model import ModelOfRun, OfficialModel
from trainer.core.plan import TrainPlan
from trainer.jobs.row import job_of
from trainer.request.parse import plan_of

RUN = "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a11"
DATA = "storage:datasets/6f1c/77b0/data.yaml"
PRESETS = {
    "balanced": {"epochs": 100, "batchSize": 16, "imgSize": 640, "learningRate": 0.001, "optimizer": "Adam", "compute": "gpu"},
    "fast": {"epochs": 40, "batchSize": 32, "imgSize": 640, "learningRate": 0.001, "optimizer": "Adam", "compute": "gpu"},
    "high_accuracy": {
        "epochs": 150, "batchSize": 16, "imgSize": 1280, "learningRate": 0.0008, "optimizer": "AdamW", "compute": "gpu",
    },
    "edge_cpu": {"epochs": 60, "batchSize": 8, "imgSize": 320, "learningRate": 0.001, "optimizer": "SGD", "compute": "cpu"},
}  # fmt: skip
GAINS = (
    "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "mosaic", "mixup",
    "copy_paste",
)  # fmt: skip
AUGMENTATIONS = {
    "none": (0,) * 13,
    "light": (0.01, 0.4, 0.3, 0, 0.05, 0.3, 0, 0, 0, 0.5, 0.5, 0, 0),
    "standard": (0.015, 0.7, 0.4, 0, 0.1, 0.5, 0, 0, 0, 0.5, 1, 0, 0),
    "strong": (0.02, 0.8, 0.5, 10, 0.2, 0.8, 2, 0, 0, 0.5, 1, 0.2, 0.1),
}
SEARCH = {
    "objective": "maximize_mAP",
    "numTrials": 20,
    "maxDuration": 6,
    "searchSpace": {
        "epochs": {"enabled": False, "min": 50, "max": 200, "type": "integer"},
        "batchSize": {"enabled": False, "options": [8, 16, 32], "type": "categorical"},
        "learningRate": {"enabled": False, "min": 0.0001, "max": 0.01, "type": "log_uniform"},
        "imgSize": {"enabled": False, "options": [320, 640, 1280], "type": "categorical"},
    },
}
CLEARED_SEARCH = {
    "objective": "",
    "numTrials": None,
    "maxDuration": None,
    "searchSpace": {
        "epochs": {"enabled": True, "min": None, "max": None, "type": "integer"},
        "batchSize": {"enabled": True, "options": [], "type": ""},
        "learningRate": {},
        "imgSize": None,
    },
}
DEFAULTS = {"epochs": 100, "batch": 16, "imgsz": 640}
BLANKS = [None, "", "   ", "\t\n", [], {}]


def insert(preset="balanced", augmentation="standard", *, data_yaml=DATA, base_model="YOLOv8s", **edited) -> dict:
    """Return the row that the dialog sends: columns, and the whole state of the dialog as `configuration`."""
    state = {
        "runName": "Inspect_v1",
        "dataYaml": data_yaml,
        "baseModel": base_model,
        **PRESETS[preset],
        "augmentation": {"preset": augmentation, **dict(zip(GAINS, AUGMENTATIONS[augmentation], strict=True))},
        "optimizationStrategy": "manual",
        "bayesianConfig": SEARCH,
    } | edited
    device = edited.get("device", "cpu" if state["compute"] == "cpu" else 0)
    return {
        "id": RUN,
        "project_id": "6f1c2c5a-0000-4000-8000-000000000001",
        "step_id": "77b02c5a-0000-4000-8000-000000000002",
        "created_by": "unknown@local",
        "run_name": state["runName"],
        "base_model": base_model,
        "data_yaml": data_yaml,
        "status": "queued",
        "configuration": state | {"device": device},
    }


def plan_of_row(row: dict) -> TrainPlan:
    """Return the plan of `row` after a JSON round trip, as a worker reads the row."""
    return plan_of(job_of(json.loads(json.dumps(row))).request)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_becomes_plan_without_warnings(preset, augmentation):
    plan = plan_of_row(insert(preset, augmentation))

    asked = PRESETS[preset]
    assert plan.sources == (DATA,)
    assert plan.model == OfficialModel(stem="yolov8s")
    assert (plan.epochs, plan.batch, plan.imgsz) == (asked["epochs"], asked["batchSize"], asked["imgSize"])
    assert plan.device == (() if preset == "edge_cpu" else (0,))
    assert (plan.args["lr0"], plan.args["optimizer"]) == (asked["learningRate"], asked["optimizer"])
    assert tuple(plan.args[name] for name in GAINS) == AUGMENTATIONS[augmentation]
    assert (plan.warnings, plan.chosen) == ((), ())


@pytest.mark.parametrize("batch", [8, 16, 32, 64])
@pytest.mark.parametrize("imgsz", [320, 640, 1280])
@pytest.mark.parametrize(("model", "stem"), [("YOLOv8s", "yolov8s"), ("YOLOv8n", "yolov8n"), ("YOLOv8m", "yolov8m")])
def test_every_choice_of_select_boxes_is_accepted(model, stem, batch, imgsz):
    plan = plan_of_row(insert(base_model=model, batchSize=batch, imgSize=imgsz))

    assert (plan.model, plan.batch, plan.imgsz) == (OfficialModel(stem=stem), batch, imgsz)
    assert plan.warnings == ()


def test_run_id_as_base_model_is_accepted():
    assert plan_of_row(insert(base_model=RUN)).model == ModelOfRun(run_id=RUN)


def test_model_that_is_not_yolo_is_rejected():
    with pytest.raises(BadRequest, match="base_model = 'EfficientDet-D0'"):
        plan_of_row(insert(base_model="EfficientDet-D0"))


@pytest.mark.parametrize("stale", BLANKS)
def test_blank_data_yaml_in_configuration_is_ignored_without_warning(stale):
    plan = plan_of_row(insert(dataYaml=stale))

    assert plan.sources == (DATA,)
    assert plan.warnings == ()


@pytest.mark.parametrize(
    "stale",
    [
        "storage:datasets/other/data.yaml",
        "https://x.supabase.co/storage/v1/object/public/datasets/6f1c/77b0/data.yaml",
        "a\nb",
        "x" * 5000,
        7,
        False,
        {"path": "x"},
        ["other.yaml", 5],
    ],
)
def test_stale_data_yaml_in_configuration_is_only_a_warning(stale):
    plan = plan_of_row(insert(dataYaml=stale))

    assert plan.sources == (DATA,)
    (warning,) = plan.warnings
    assert warning.startswith("dataYaml was ignored")


@pytest.mark.parametrize("stale", BLANKS)
def test_blank_base_model_in_configuration_is_ignored_without_warning(stale):
    plan = plan_of_row(insert(base_model="YOLOv8n", baseModel=stale))

    assert plan.model == OfficialModel(stem="yolov8n")
    assert plan.warnings == ()


@pytest.mark.parametrize("stale", ["YOLOv8s", "EfficientDet-D0", 7, {"name": "x"}, ["YOLOv8s"], False])
def test_stale_base_model_in_configuration_is_only_a_warning(stale):
    plan = plan_of_row(insert(base_model="YOLOv8n", baseModel=stale))

    assert plan.model == OfficialModel(stem="yolov8n")
    (warning,) = plan.warnings
    assert warning.startswith("baseModel was ignored")


@pytest.mark.parametrize("blank", [None, "", "  ", "\n"])
def test_configuration_is_used_if_column_is_blank(blank):
    row = insert(dataYaml="storage:datasets/a/data.yaml", baseModel="YOLOv8n") | {
        "data_yaml": blank,
        "base_model": blank,
    }

    plan = plan_of_row(row)

    assert plan.sources == ("storage:datasets/a/data.yaml",)
    assert plan.model == OfficialModel(stem="yolov8n")
    assert plan.warnings == ()


@pytest.mark.parametrize("blank", BLANKS)
def test_dataset_missing_in_column_and_configuration_is_rejected(blank):
    with pytest.raises(BadRequest) as refused:
        plan_of_row(insert(dataYaml=blank) | {"data_yaml": ""})

    (problem,) = refused.value.problems
    assert problem.startswith("data_yaml: the dataset is missing")


# ── cleared inputs: the browser sends "", or null for an invalid number ──


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize(
    ("field", "setting"), [("epochs", "epochs"), ("batchSize", "batch"), ("imgSize", "imgsz")],
)  # fmt: skip
def test_cleared_number_means_default(field, setting, blank):
    plan = plan_of_row(insert("high_accuracy", **{field: blank}))

    assert getattr(plan, setting) == DEFAULTS[setting]
    assert plan.chosen == (setting,)
    assert plan.warnings == ()


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize(
    ("field", "setting", "chosen"), [("learningRate", "lr0", 0.001), ("optimizer", "optimizer", "Adam")],
)  # fmt: skip
def test_cleared_optimizer_or_learning_rate_means_default(field, setting, chosen, blank):
    plan = plan_of_row(insert("high_accuracy", **{field: blank}))

    assert plan.args[setting] == chosen
    assert plan.chosen == (setting,)


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize(
    "field",
    ["runName", "compute", "augmentation", "optimizationStrategy", "bayesianConfig", "seed", "patience", "device"],
)
def test_cleared_field_equals_missing_field(field, blank):
    cleared, without = insert(), insert()
    cleared["configuration"][field] = blank
    without["configuration"].pop(field, None)

    plan = plan_of_row(cleared)

    assert plan == plan_of_row(without)
    assert plan.warnings == ()


@pytest.mark.parametrize("field", GAINS)
def test_cleared_augmentation_does_not_change_other_augmentations(field):
    for blank in BLANKS:
        row = insert("balanced", "strong")
        row["configuration"]["augmentation"][field] = blank

        plan = plan_of_row(row)

        assert field not in plan.args
        assert len(plan.args) == 2 + 12
        assert plan.warnings == ()


@pytest.mark.parametrize("blank", BLANKS)
def test_cleared_dialog_becomes_default_plan(blank):
    row = insert()
    row["configuration"] = dict.fromkeys(row["configuration"], blank)

    plan = plan_of_row(row | {"base_model": ""})

    assert plan == plan_of(RunRequest(data_yaml=DATA))


@pytest.mark.parametrize("strategy", ["manual", "bayesian"])
def test_cleared_search_settings_do_not_change_plan(strategy):
    plan = plan_of_row(insert(optimizationStrategy=strategy, bayesianConfig=CLEARED_SEARCH))

    assert (plan.epochs, plan.batch) == (100, 16)
    assert len(plan.warnings) == (strategy == "bayesian")


def test_zero_and_false_do_not_mean_default():
    row = insert(augmentation="none")
    row["configuration"] |= {"seed": 0, "patience": 0, "workers": 0, "amp": False}

    plan = plan_of_row(row)

    assert [plan.args[name] for name in ("seed", "patience", "workers", "amp")] == [0, 0, 0, False]
    assert [plan.args[name] for name in GAINS] == [0] * 13
    assert plan.device == (0,)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("epochs", -5), ("batchSize", 0), ("imgSize", 0), ("learningRate", 0), ("learningRate", -0.1)],
)
def test_number_out_of_range_is_reported_with_its_field_name(field, value):
    with pytest.raises(BadRequest) as refused:
        plan_of_row(insert(**{field: value}))

    (problem,) = refused.value.problems
    assert problem.startswith(f"{field} = {value}: must be")
