"""The dataset, split, task, device and exports of a configuration."""

import pytest

from tests.unit.request.reading import parse, problems
from trainer.core.dataset import SplitRequest, Task
from trainer.core.errors import BadRequest
from trainer.core.model import OfficialModel

# ── the dataset ──


def test_data_yaml_of_row_has_priority_with_warning():
    plan = parse({"dataYaml": "stale.yaml"}, data_yaml="fresh.yaml")
    assert plan.sources == ("fresh.yaml",)
    assert plan.warnings == ("dataYaml was ignored: the data_yaml of the row is different",)


@pytest.mark.parametrize("row", [None, "", "  "])
def test_dataset_of_configuration_is_used_if_row_names_no_dataset(row):
    assert parse({"dataYaml": " a.yaml "}, data_yaml=row).sources == ("a.yaml",)
    assert parse({"data": "a.yaml"}, data_yaml=row).sources == ("a.yaml",)


def test_list_of_datasets_is_used_unless_row_names_another_dataset():
    assert parse({"data_yaml": ["a.yaml", "b.yaml"]}, data_yaml=None).sources == ("a.yaml", "b.yaml")
    assert parse({"data_yaml": ["a.yaml", "b.yaml"]}, data_yaml="a.yaml").sources == ("a.yaml", "b.yaml")
    assert parse({"data_yaml": ["a.yaml", "b.yaml"]}, data_yaml="c.yaml").sources == ("c.yaml",)


@pytest.mark.parametrize("bad", [[""], ["a", 3], {"a": 1}, 7, "a\nb", "x" * 5000, ["a"] * 65])
def test_invalid_dataset_reference_is_rejected(bad):
    (problem,) = problems({"data": bad}, data_yaml=None)
    assert problem.startswith("data = ")


def test_missing_or_invalid_dataset_is_rejected():
    (problem,) = problems(data_yaml=None)
    assert problem.startswith("data_yaml: the dataset is missing")
    (problem,) = problems(data_yaml="a\x00b")
    assert problem.startswith("data_yaml = ")


@pytest.mark.parametrize(
    ("configuration", "split"),
    [
        ({"split": {"train_ratio": 0.8}}, SplitRequest(train_ratio=0.8)),
        ({"split": {"train_ratio": 0.8, "val_ratio": 0.2, "seed": 42}}, SplitRequest(train_ratio=0.8, seed=42)),
        ({"split": {"trainRatio": 0.7, "testRatio": 0.1}}, SplitRequest(train_ratio=0.7, test_ratio=0.1)),
        ({"split": {"train_ratio": 0.8, "val_ratio": 0.2, "random_seed": 7}}, SplitRequest(train_ratio=0.8, seed=7)),
        ({"split": [0.8, 0.1, 0.1], "split_seed": 42}, SplitRequest(train_ratio=0.8, test_ratio=0.1, seed=42)),
        ({"split": 0.75}, SplitRequest(train_ratio=0.75)),
        ({"split_config": {"ratio": [0.8, 0.2], "seed": 1, "method": "auto"}}, SplitRequest(train_ratio=0.8, seed=1)),
        ({"split_config": {"default_ratio": [0.9, 0.1]}}, SplitRequest(train_ratio=0.9)),
        ({"split_strategy": {"method": "use_dataset"}}, None),
        ({"split": "val"}, None),
    ],
)
def test_split_is_read_in_all_forms(configuration, split):
    found = parse(configuration).split
    assert (found is None) == (split is None)
    if found and split:
        assert found.train_ratio == pytest.approx(split.train_ratio)
        assert found.test_ratio == pytest.approx(split.test_ratio)
        assert found.seed == split.seed


def test_image_ids_of_split_are_read_as_text_or_number():
    found = parse({"split_config": {"splits": {"1": "train", "2": "validation", 3: "test"}}}).split
    assert found.assigned == {"1": "train", "2": "val", "3": "test"}
    assert found.train_ratio == pytest.approx(0.8)


@pytest.mark.parametrize(
    "split",
    [
        *({"train_ratio": 0}, {"train_ratio": 1}, {"train_ratio": 0.9, "val_ratio": 0.3}, {"train_ratio": "most"}),
        *(
            [0.8],
            [0.5, 0.5, 0.5],
            [1, 0],
            0,
            1,
            1.5,
            True,
            {"seed": -1, "train_ratio": 0.5},
            {"splits": {"1": "nowhere"}},
        ),
        *({"splits": [1]}, {"train_ratio": 0.9, "test_ratio": 0.1}, {"train_ratio": float("nan")}),
    ],
)
def test_invalid_split_is_rejected(split):
    (problem,) = problems({"split": split})
    assert problem.startswith("split = ")
    assert "train_ratio" in problem


def test_choice_of_evaluated_split_is_ignored_with_warning():
    (warning,) = parse({"split": "test"}).warnings
    assert "val and test are both evaluated" in warning


# ── the task ──


@pytest.mark.parametrize(
    ("word", "task"),
    [
        *(("detect", Task.DETECT), ("det", Task.DETECT), ("Detection", Task.DETECT), ("object_detection", Task.DETECT)),
        *(("seg", Task.SEGMENT), ("segmentation", Task.SEGMENT), ("instance_segmentation", Task.SEGMENT)),
        *(("classify", Task.CLASSIFY), ("cls", Task.CLASSIFY), ("image-classification", Task.CLASSIFY)),
        *(("pose", Task.POSE), ("pose_estimation", Task.POSE), ("keypoints", Task.POSE), ("OBB", Task.OBB)),
        *(("oriented", Task.OBB), ("auto", None), ("", None)),
    ],
)
@pytest.mark.parametrize("key", ["task", "modelTask", "trainingTask", "task_type"])
def test_task_is_recognized_in_any_spelling_under_any_setting_name(key, word, task):
    assert parse({key: word}).task == task


@pytest.mark.parametrize("word", ["semantic", "depth", "track", "123", "?", 3, ["detect"]])
def test_unknown_task_is_rejected(word):
    (problem,) = problems({"task": word})
    assert "one of detect, segment, classify, pose, obb" in problem


def test_plan_warns_if_model_has_other_task():
    plan = parse({"task": "pose"}, base_model="yolo11n-seg")
    assert plan.model == OfficialModel(stem="yolo11n", task=Task.SEGMENT)
    assert plan.warnings == ("base_model names a segment model, but the task is pose: yolo11n-pose is used",)
    assert plan.model_warning(Task.POSE) is None


def test_model_that_does_not_exist_for_task_is_rejected():
    (problem,) = problems({"task": "segment"}, base_model="yolov10n")
    assert "only for detect" in problem


def test_plan_warns_if_dataset_has_other_task():
    plan = parse(base_model="yolo11n-seg")
    assert plan.model_warning(Task.SEGMENT) is None
    assert "yolo11n is used instead" in plan.model_warning(Task.DETECT)
    assert parse(base_model="yolo11n").model_warning(Task.SEGMENT) is None
    assert parse(base_model="mine.pt").model_warning(Task.SEGMENT) is None
    with pytest.raises(BadRequest, match="only for"):
        parse(base_model="yolov9c-seg").model_warning(Task.POSE)


# ── the device ──


@pytest.mark.parametrize(
    ("configuration", "device"),
    [
        ({"device": None}, None),
        ({"device": "auto"}, None),
        ({"device": ""}, None),
        ({"device": 0}, (0,)),
        ({"device": "0"}, (0,)),
        ({"device": "cuda:0"}, (0,)),
        ({"device": "cuda"}, (0,)),
        ({"device": "cuda:0,1"}, (0, 1)),
        ({"device": " 1 "}, (1,)),
        ({"device": ",".join(map(str, range(64)))}, tuple(range(64))),
        ({"device": -1}, (0,)),
        ({"device": [-1, -1]}, (0, 1)),
        ({"device": "0,1"}, (0, 1)),
        ({"device": [0, "1"]}, (0, 1)),
        ({"device": "cpu"}, ()),
        ({"device": "CPU", "compute": "cpu"}, ()),
        ({"compute": "cpu"}, ()),
        ({"compute": "gpu"}, (0,)),
        ({"compute": "gpu", "device": 1}, (1,)),
    ],
)
def test_device_is_read_in_all_forms(configuration, device):
    assert parse(configuration).device == device


@pytest.mark.parametrize(
    "device",
    [
        "npu:0",
        "mps",
        "0;rm -rf",
        "0,0",
        [0, 0],
        [""],
        -2,
        64,
        1.5,
        True,
        {"a": 1},
        "cuda:x",
        "0,cpu",
        [-1] * 65,
        "-1,99",
        [-1, 0.5],
        [-1, -7],
    ],
)
def test_invalid_device_is_rejected(device):
    (problem,) = problems({"device": device})
    assert problem.startswith("device = ")


def test_contradicting_compute_and_device_are_rejected():
    (problem,) = problems({"compute": "cpu", "device": 0})
    assert "contradict" in problem
    (problem,) = problems({"compute": "quantum"})
    assert "'gpu' or 'cpu'" in problem


# ── exports and other settings ──


@pytest.mark.parametrize(
    ("value", "exports"),
    [
        (["onnx", "torchscript"], ("onnx", "torchscript")),
        ("onnx", ("onnx",)),
        ("ONNX, TorchScript", ("onnx", "torchscript")),
        (["onnx", "onnx"], ("onnx",)),
        ([], ()),
        (False, ()),
        (None, ()),
    ],
)
@pytest.mark.parametrize("key", ["export", "exports"])
def test_available_export_formats_are_read(key, value, exports):
    assert parse({key: value}, exports_available=frozenset({"onnx", "torchscript"})).exports == exports


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["onnx"], "needs the packages onnx, onnxslim, onnxruntime"),
        (["tensorrt"], "needs the packages tensorrt"),
        (["imx"], "a tool chain that is not supported"),
        (["../x"], "this export format does not exist"),
        (True, "must be a list"),
        ([3], "must be a list"),
        ({"onnx": True}, "must be a list"),
    ],
)
def test_unavailable_export_format_is_rejected_with_reason(value, reason):
    (problem,) = problems({"export": value})
    assert reason in problem


def test_requirements_do_not_change_the_plan():
    assert parse({"requires": {"gpus": 1, "gpu_memory_gb": "16"}}) == parse({"requires": {}}) == parse(None)


def test_requirements_in_a_section_are_ignored_with_warning():
    assert parse({"training": {"requires": {"gpus": 1}}}).warnings == (
        "training.requires had no effect: move it out of the section",
    )


def test_learning_rate_is_ignored_with_warning_if_optimizer_is_auto():
    assert parse({"optimizer": "auto"}).args == parse({"optimizer": " AUTO"}).args == {"optimizer": "auto"}
    assert parse({"optimizer": "auto", "lr0": 0.1}).warnings == (
        "lr0 has no effect, because optimizer = auto chooses the learning rate",
    )


@pytest.mark.parametrize("unset", ["", "none", "null", None])
def test_unset_optimizer_means_default(unset):
    plan = parse({"optimizer": unset})
    assert plan.args["optimizer"] == "Adam"
    assert "optimizer" in plan.chosen


def test_image_size_that_is_rounded_has_warning():
    assert parse({"imgsz": 100}).warnings == ("imgsz = 100 is not a multiple of 32; Ultralytics trains at 128",)
