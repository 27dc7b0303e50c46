"""From a row to a plan: what the web apps send, what people type, and what strangers try."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.core.dataset import ObjectRef, SplitRequest, Task
from trainer.core.errors import BadRequest
from trainer.core.job import RunRequest
from trainer.core.model import Architecture, ModelFile, ModelObject, ModelOfRun, OfficialModel
from trainer.core.plan import TrainPlan
from trainer.request.configuration import ARGUMENTS
from trainer.request.parse import plan_of
from trainer.request.train_arguments import IGNORED, PLANNED, REFUSED

RUN = "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a11"

# what the web app inserts for its preset "balanced"
WEB = {
    "runName": "first",
    "dataYaml": "storage:datasets/p/s/data.yaml",
    "baseModel": "YOLOv8s",
    "epochs": 100,
    "batchSize": 16,
    "imgSize": 640,
    "learningRate": 0.001,
    "optimizer": "Adam",
    "compute": "gpu",
    "device": 0,
    "augmentation": {
        "preset": "standard",
        "hsv_h": 0.015,
        "hsv_s": 0.7,
        "hsv_v": 0.4,
        "degrees": 5,
        "translate": 0.1,
        "scale": 0.5,
        "shear": 0,
        "perspective": 0,
        "flipud": 0,
        "fliplr": 0.5,
        "mosaic": 1,
        "mixup": 0,
        "copy_paste": 0,
    },
    "optimizationStrategy": "manual",
    "bayesianConfig": {"objective": "maximize_mAP", "numTrials": 20, "searchSpace": {"epochs": {"enabled": False}}},
}


def parse(configuration=None, *, data_yaml="data.yaml", base_model=None, **options) -> TrainPlan:
    request = RunRequest(data_yaml=data_yaml, base_model=base_model, configuration=configuration)
    return plan_of(request, **options)


def problems(configuration=None, **options) -> tuple[str, ...]:
    with pytest.raises(BadRequest) as refused:
        parse(configuration, **options)
    return refused.value.problems


# ── the web app's row ──


def test_the_web_apps_row_becomes_a_plan_without_a_warning():
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


def test_an_empty_row_gets_the_documented_defaults_and_says_that_they_were_chosen():
    plan = parse(None)
    assert plan.model == OfficialModel(stem="yolov8s")
    assert (plan.epochs, plan.batch, plan.imgsz, plan.device, plan.task) == (100, 16, 640, None, None)
    assert plan.args == {"optimizer": "Adam", "lr0": 0.001}
    assert set(plan.chosen) == {"base_model", "epochs", "batch", "imgsz", "optimizer", "lr0"}


def test_null_means_the_default():
    assert parse(dict.fromkeys(WEB)) == parse(None)
    assert parse({"augmentation": {"mosaic": None}}) == parse(None)


def test_what_the_row_says_is_not_called_chosen():
    assert parse({"epochs": 100, "lr0": 0.001}).chosen == ("base_model", "batch", "imgsz", "optimizer")


@pytest.mark.parametrize("times", [1, 2])
def test_a_configuration_may_be_json_text_and_text_of_that_text(times):
    text = {"epochs": 7, "augmentation": json.dumps({"mosaic": 0.5})}
    for _ in range(times):
        text = json.dumps(text)
    plan = parse(text)
    assert plan.epochs == 7
    assert plan.args["mosaic"] == 0.5


@pytest.mark.parametrize("text", ["", "  ", "{}", "null", '""', "[]", None, {}, []])
def test_an_empty_configuration_is_the_default(text):
    assert parse(text) == parse(None)


@pytest.mark.parametrize(
    "raw", ["{epochs: 3}", "not json", "[1]", "3", [1], 3, True, '"x"', "[" * 50_000, "{" * 9, "1" * 5000]
)
def test_a_configuration_that_is_no_object_is_refused(raw):
    (problem,) = problems(raw)
    assert problem.startswith("configuration = ")
    assert len(problem) < 200


def test_a_configuration_of_many_megabytes_is_refused_unread():
    (problem,) = problems('{"epochs": 3' + " " * 2_000_000 + "}")
    assert "1000000 characters" in problem


# ── spellings ──


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ({"batch": 4}, ("batch", 4)),
        ({"batchSize": 4}, ("batch", 4)),
        ({"batch_size": "4"}, ("batch", 4)),
        ({"BATCH-SIZE": 4.0}, ("batch", 4)),
        ({"imgsz": 320}, ("imgsz", 320)),
        ({"imgSize": 320}, ("imgsz", 320)),
        ({"image_size": 320}, ("imgsz", 320)),
        ({"num_epochs": 3}, ("epochs", 3)),
        ({"hyperparameters": {"epochs": 3}}, ("epochs", 3)),
        ({"hyperparams": {"epochs": 3, "imgsz": 640}}, ("epochs", 3)),
        ({"advanced_config": {"hyperparameters": {"epochs": 3}}}, ("epochs", 3)),
        ({"predictions": "true"}, ("predictions", True)),
    ],
)
def test_other_systems_spellings_mean_the_same(configuration, expected):
    plan = parse(configuration)
    assert getattr(plan, expected[0]) == expected[1]
    assert plan.warnings == ()


@pytest.mark.parametrize(
    ("configuration", "name", "value"),
    [
        ({"lr": 0.02}, "lr0", 0.02),
        ({"learning_rate": 0.02}, "lr0", 0.02),
        ({"learningRate": "0.02"}, "lr0", 0.02),
        ({"optimizer_type": "sgd"}, "optimizer", "SGD"),
        ({"advanced_config": {"optimizer": {"type": "adamw", "learning_rate": 0.02}}}, "lr0", 0.02),
        ({"advanced_config": {"optimizer": {"type": "adamw"}}}, "optimizer", "AdamW"),
        ({"advanced_config": {"augmentation": {"mixup": 0.1}}}, "mixup", 0.1),
        ({"advanced_config": {"weight_decay": 0.0005, "cos_lr": True}}, "cos_lr", True),
        ({"augmentation": '{"hsv_h": 0.5}'}, "hsv_h", 0.5),
        ({"mosaic": True}, "mosaic", 1.0),
        ({"patience": 30}, "patience", 30),
        ({"seed": 3, "deterministic": True}, "seed", 3),
        ({"weightDecay": 0.1}, "weight_decay", 0.1),
        ({"closeMosaic": 0}, "close_mosaic", 0),
        ({"mixed_precision": False}, "amp", False),
        ({"workers": 0}, "workers", 0),
        ({"cache": "ram"}, "cache", "ram"),
    ],
)
def test_train_arguments_are_found_under_any_spelling_and_nesting(configuration, name, value):
    plan = parse(configuration)
    assert plan.args[name] == value
    assert plan.warnings == ()


def test_an_unknown_setting_is_a_warning_with_the_nearest_name():
    plan = parse({"epoch_count": 3, "learningRat": 1, "foo": {"a": 1}, "augmentation": {"wobble": 1}})
    assert plan.warnings == (
        "unknown setting epoch_count was ignored",
        "unknown setting learningRat was ignored; did you mean lr0?",
        "unknown setting foo was ignored",
        "unknown setting augmentation.wobble was ignored",
    )


@pytest.mark.parametrize("preset", [{"augmentation": "strong"}, {"augmentation": {"preset": "strong"}}])
def test_a_preset_without_its_values_has_no_effect_and_says_so(preset):
    (warning,) = parse(preset).warnings
    assert warning.startswith("augmentation")
    assert "send the augmentation's values" in warning
    assert parse({"augmentation": {"preset": "none"}}).warnings == ()


def test_thousands_of_unknown_settings_take_no_time_and_no_room():
    plan = parse({f"setting_{number}": number for number in range(20_000)})
    assert len(plan.warnings) == 51
    assert plan.warnings[-1] == "and 19950 more"
    found = problems(
        {"".join(c.upper() if n >> i & 1 else c for i, c in enumerate("epochs")): n + 1 for n in range(64)}
    )
    assert len(found) == 51


def test_two_spellings_that_agree_are_one():
    assert parse({"batch": 8, "batchSize": 8}).batch == 8


def test_two_spellings_that_disagree_are_a_problem():
    assert problems({"batch": 8, "batchSize": 16}) == (
        "batch = 8 and batchSize = 16: two spellings of the same setting must agree; keep one",
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_a_nested_setting_is_more_specific_than_a_flat_one(reverse):
    items = [("imgsz", 640), ("advanced_config", {"imgsz": 1280})]
    plan = parse(dict(reversed(items) if reverse else items))
    assert plan.imgsz == 1280
    assert plan.warnings == ("imgsz = 640 was ignored: advanced_config.imgsz = 1280 is more specific",)


# ── everything that is wrong, at once ──


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
def test_values_out_of_range_are_one_problem_of_bounded_length(configuration):
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
def test_settings_that_could_do_harm_are_refused_with_the_reason(name, value):
    (problem,) = problems({name: value})
    assert problem == f"{name}: may not be set; {REFUSED[name]}"
    (nested,) = problems({"hyperparameters": {name: value}})
    assert nested.startswith(f"hyperparameters.{name}: ")


@pytest.mark.parametrize(
    "harmless", [{"resume": False}, {"exist_ok": False}, {"mode": "train"}, {"name": ""}, {"cfg": None}]
)
def test_saying_that_they_are_off_is_fine(harmless):
    assert parse(harmless) == parse(None)


def test_weights_behind_pretrained_are_refused():
    (problem,) = problems({"pretrained": "s3://bucket/best.pt"})
    assert "base_model" in problem


def test_settings_of_other_modes_are_ignored_with_a_warning():
    plan = parse({"line_width": 3, "opset": 17, "tracker": "/evil.yaml"})
    assert len(plan.warnings) == 3
    assert set(plan.args) == {"optimizer", "lr0"}


def test_the_bayesian_search_is_not_run_and_says_so():
    assert parse({"optimizationStrategy": "bayesian"}).warnings == (
        "the Bayesian search was not run: one training with the given values was",
    )


def test_values_in_messages_are_bounded_and_hold_no_credentials():
    (long,) = problems({"epochs": "x" * 10_000})
    assert len(long) < 200
    (url,) = problems(base_model="https://user:hunter2@host/best.pt?token=hunter3")
    assert "hunter" not in url
    (deep,) = problems({"epochs": json.loads("[" * 500 + "]" * 500)})
    assert len(deep) < 200
    assert all(line.isprintable() for line in problems({"epochs": "a\nb\x00\x1b[31m"}))
    assert all(line.isprintable() for line in parse({"a\nb\x00\ud800": 1}).warnings)


# ── the dataset ──


def test_the_rows_data_yaml_wins_over_the_configurations_and_says_so():
    plan = parse({"dataYaml": "stale.yaml"}, data_yaml="fresh.yaml")
    assert plan.sources == ("fresh.yaml",)
    assert plan.warnings == ("dataYaml was ignored: the row's data_yaml is another",)


@pytest.mark.parametrize("row", [None, "", "  "])
def test_the_configurations_dataset_is_used_when_the_row_has_none(row):
    assert parse({"dataYaml": " a.yaml "}, data_yaml=row).sources == ("a.yaml",)
    assert parse({"data": "a.yaml"}, data_yaml=row).sources == ("a.yaml",)


def test_a_list_of_datasets_is_merged():
    assert parse({"data_yaml": ["a.yaml", "b.yaml"]}, data_yaml=None).sources == ("a.yaml", "b.yaml")
    assert parse({"data_yaml": ["a.yaml", "b.yaml"]}, data_yaml="a.yaml").sources == ("a.yaml", "b.yaml")
    assert parse({"data_yaml": ["a.yaml", "b.yaml"]}, data_yaml="c.yaml").sources == ("c.yaml",)


@pytest.mark.parametrize("bad", [[""], ["a", 3], {"a": 1}, 7, "a\nb", "x" * 5000, ["a"] * 65])
def test_a_dataset_that_is_no_reference_is_refused(bad):
    (problem,) = problems({"data": bad}, data_yaml=None)
    assert problem.startswith("data = ")


def test_no_dataset_is_a_problem():
    (problem,) = problems(data_yaml=None)
    assert problem.startswith("data_yaml: missing")
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
def test_a_split_is_asked_for_in_many_ways(configuration, split):
    found = parse(configuration).split
    assert (found is None) == (split is None)
    if found and split:
        assert found.train_ratio == pytest.approx(split.train_ratio)
        assert found.test_ratio == pytest.approx(split.test_ratio)
        assert found.seed == split.seed


def test_images_may_be_assigned_to_splits_by_id_of_either_type():
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
def test_a_split_that_makes_no_sense_is_refused(split):
    (problem,) = problems({"split": split})
    assert problem.startswith("split = ")
    assert "train_ratio" in problem


def test_the_split_to_evaluate_is_not_the_rows_choice():
    (warning,) = parse({"split": "test"}).warnings
    assert "val and test are both evaluated" in warning


# ── the model ──


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("YOLOv8s", OfficialModel(stem="yolov8s")),
        ("yolov8n.pt", OfficialModel(stem="yolov8n")),
        ("YOLO 11 n", OfficialModel(stem="yolo11n")),
        ("yolo11n-seg", OfficialModel(stem="yolo11n", task=Task.SEGMENT)),
        ("yolo11n-seg.pt", OfficialModel(stem="yolo11n", task=Task.SEGMENT)),
        ("yolo11n.yaml", Architecture(stem="yolo11n")),
        ("YOLO11n-pose.yml", Architecture(stem="yolo11n", task=Task.POSE)),
        ("yolov6n.yaml", Architecture(stem="yolov6n")),
        ("yolov5nu.yaml", Architecture(stem="yolov5n")),
        ("mine.pt", ModelFile(name="mine.pt")),
        ("team/mine v2.PT", ModelFile(name="team/mine v2.PT")),
        ("yolo11n_mine.pt", ModelFile(name="yolo11n_mine.pt")),
        ("storage:training_runs/x/1/best.pt", ModelObject(ref=ObjectRef(bucket="b", key="training_runs/x/1/best.pt"))),
        ("storage:b/training_runs/x/best.pt", ModelObject(ref=ObjectRef(bucket="b", key="training_runs/x/best.pt"))),
        ("storage:datasets/evil.pt", ModelObject(ref=ObjectRef(bucket="b", key="datasets/evil.pt"))),
        (RUN, ModelOfRun(run_id=RUN)),
        (f" {RUN.upper()} ", ModelOfRun(run_id=RUN)),
        ("none", OfficialModel(stem="yolov8s")),
    ],
)
def test_what_a_base_model_may_name(name, model):
    assert parse(base_model=name, artifacts_bucket="b").model == model
    assert parse({"baseModel": name}, artifacts_bucket="b").model == model


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("EfficientDet-D0", "not a YOLO model"),
        ("sam2_b", "not trained"),
        ("sam2_b.pt", "not trained"),
        ("FastSAM-s.pt", "not trained"),
        ("yolo_nas_s", "YOLO-NAS"),
        ("yolov8s-world", "CLIP"),
        ("yoloe-11s-seg.pt", "CLIP"),
        ("yolo26n-sem", "not served"),
        ("yolov6n", "yolov6n.yaml trains it from scratch"),
        ("yolov8", "nearest: yolov8"),
        ("resnet18", "nearest"),
        ("custom.yaml", "only architectures of the installed"),
        ("../yolo11n.yaml", "only architectures of the installed"),
        ("/etc/evil.yaml", "only architectures of the installed"),
        ("/tmp/evil.pt", "relative to MODELS_DIR"),
        ("~/evil.pt", "relative to MODELS_DIR"),
        ("-evil.pt", "relative to MODELS_DIR"),
        ("..\\evil.pt", "relative to MODELS_DIR"),
        ("../yolo11n.pt", "hidden"),
        ("a/../../evil.pt", "hidden"),
        (".runs/theirs.pt", "hidden"),
        ("a//b.pt", "hidden"),
        ("a" * 300 + ".pt", "too long"),
        ("a" * 600 + ".pt", "too long"),
        ("evil\n.pt", "printable"),
        ("http://host/evil.pt", "URL"),
        ("HTTPS://host/evil.pt", "URL"),
        ("file:///tmp/evil.pt", "URL"),
        ("ul://user/project/model", "URL"),
        ("gs://bucket/evil.pt", "URL"),
        ("C:/evil.pt", "URL"),
        ("grpc://host/model", "URL"),
        ("storage:b/../datasets/evil.pt", "hidden"),
        ("storage:best.onnx", "must be a .pt file"),
        ("storage:", "hidden"),
        ("best.onnx", "no such model"),
        ("model.engine", "no such model"),
    ],
)
def test_what_a_base_model_may_not_name(name, reason):
    (problem,) = problems(base_model=name, artifacts_bucket="b")
    assert problem.startswith("base_model = ")
    assert reason in problem


@pytest.mark.parametrize("bad", [3, ["yolo11n"], {"name": "yolo11n"}, True])
def test_a_base_model_that_is_no_text_is_refused(bad):
    (problem,) = problems({"model": bad})
    assert "must be a model's name" in problem


def test_the_rows_base_model_wins_over_the_configurations():
    plan = parse({"baseModel": "YOLOv8n"}, base_model="yolo11s")
    assert plan.model == OfficialModel(stem="yolo11s")
    assert plan.warnings == ("baseModel was ignored: the row's base_model is another",)
    assert parse({"baseModel": "YOLO-11s"}, base_model="yolo11s").warnings == ()


def test_pretrained_false_trains_the_same_network_from_scratch():
    assert parse({"pretrained": False}, base_model="yolo11n-seg").model == Architecture(
        stem="yolo11n", task=Task.SEGMENT
    )
    assert parse({"pretrained": "no"}, base_model="yolov5n").model == Architecture(stem="yolov5n")
    assert parse({"pretrained": True}, base_model="yolo11n").model == OfficialModel(stem="yolo11n")


def test_pretrained_false_is_refused_where_there_is_no_network_without_weights():
    for name in ("mine.pt", RUN, "yolov8n-oiv7"):
        (problem,) = problems({"pretrained": False}, base_model=name)
        assert problem.startswith("pretrained = False")


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
def test_a_task_is_known_by_its_prefix_under_any_of_its_names(key, word, task):
    assert parse({key: word}).task == task


@pytest.mark.parametrize("word", ["semantic", "depth", "track", "123", "?", 3, ["detect"]])
def test_other_tasks_are_refused(word):
    (problem,) = problems({"task": word})
    assert "one of detect, segment, classify, pose, obb" in problem


def test_a_model_of_another_task_is_replaced_by_the_same_model_of_the_right_one():
    plan = parse({"task": "pose"}, base_model="yolo11n-seg")
    assert plan.model == OfficialModel(stem="yolo11n", task=Task.SEGMENT)
    assert plan.warnings == ("base_model names a segment model, and the task is pose: yolo11n-pose is used",)
    assert plan.model_warning(Task.POSE) is None


def test_a_model_that_does_not_exist_for_the_task_is_refused():
    (problem,) = problems({"task": "segment"}, base_model="yolov10n")
    assert "only for detect" in problem


def test_a_plan_warns_when_the_dataset_turns_out_to_be_of_another_task():
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
def test_a_device_is_an_index_a_list_the_cpu_or_left_open(configuration, device):
    assert parse(configuration).device == device


@pytest.mark.parametrize(
    "device",
    ["npu:0", "mps", "0;rm -rf", "0,0", [0, 0], [""], -2, 64, 1.5, True, {"a": 1}, "cuda:x", "0,cpu", [-1] * 65],
)
def test_other_devices_are_refused(device):
    (problem,) = problems({"device": device})
    assert problem.startswith("device = ")


def test_compute_and_device_have_to_agree():
    (problem,) = problems({"compute": "cpu", "device": 0})
    assert "contradict" in problem
    (problem,) = problems({"compute": "quantum"})
    assert "'gpu' or 'cpu'" in problem


# ── the rest ──


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
def test_exports_are_formats_whose_packages_are_there(key, value, exports):
    assert parse({key: value}, exports_available=frozenset({"onnx", "torchscript"})).exports == exports


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["onnx"], "needs the packages onnx, onnxslim, onnxruntime"),
        (["tensorrt"], "needs the packages tensorrt"),
        (["imx"], "a tool chain that is not served"),
        (["../x"], "no such export format"),
        (True, "must be a list"),
        ([3], "must be a list"),
        ({"onnx": True}, "must be a list"),
    ],
)
def test_other_exports_are_refused_naming_what_there_is(value, reason):
    (problem,) = problems({"export": value})
    assert reason in problem


def test_what_a_run_requires_of_its_worker_is_the_queues_business():
    assert parse({"requires": {"gpus": 1, "gpu_memory_gb": "16"}}) == parse({"requires": {}}) == parse(None)


def test_automatic_optimization_is_left_its_own_learning_rate():
    assert parse({"optimizer": "auto"}).args == parse({"optimizer": " AUTO"}).args == {"optimizer": "auto"}
    assert parse({"optimizer": "auto", "lr0": 0.1}).warnings == (
        "lr0 has no effect: optimizer = auto chooses the learning rate",
    )


@pytest.mark.parametrize("unset", ["", "none", "null", None])
def test_an_optimizer_may_be_left_open_in_words(unset):
    plan = parse({"optimizer": unset})
    assert plan.args["optimizer"] == "Adam"
    assert "optimizer" in plan.chosen


def test_an_image_size_that_will_be_rounded_is_announced():
    assert parse({"imgsz": 100}).warnings == ("imgsz = 100 is not a multiple of 32; Ultralytics trains at 128",)


# ── as JSON ──

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
def test_whatever_a_row_holds_it_is_a_plan_or_a_bad_request(configuration, data_yaml, base_model):
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
            "unheard": st.integers(),
        }.items()
    ),
)


@_few
@given(st.lists(_one_setting, max_size=8).map(dict))
def test_a_plan_survives_being_written_down(configuration):
    plan = parse(configuration)
    assert TrainPlan.from_json(json.loads(json.dumps(plan.as_json()))) == plan


@pytest.mark.parametrize("data", [{}, {"model": {"kind": "evil"}}])
def test_what_is_no_plan_is_not_read_as_one(data):
    with pytest.raises((KeyError, ValueError)):
        TrainPlan.from_json(data)


def test_an_unknown_kind_of_model_is_not_read():
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
def test_a_plan_for_other_eyes_has_no_credentials_in_its_urls(source, shown):
    plan = plan_of(RunRequest(data_yaml=source))

    assert plan.sources == (source,)
    assert plan.recorded()["sources"] == [shown]
    assert plan.without_secrets().sources == (shown,)


def test_split_by_name_is_recorded_by_its_size_and_digest():
    """So that an edited split is another training, also with as many images."""

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
def test_the_hosts_share_of_loaders_is_chosen_only_where_the_row_is_silent(row, workers, chosen):
    plan = plan_of(RunRequest(data_yaml="/data/x.yaml", configuration=row), workers=3)

    assert plan.args["workers"] == workers
    assert ("workers" in plan.chosen) is chosen


def test_without_a_share_the_loaders_are_ultralytics_business():
    assert "workers" not in plan_of(RunRequest(data_yaml="/data/x.yaml")).args


# ── what is blank is not given ──

BLANKS = [None, "", "  ", "\n\t", "\u00a0", [], {}]
OTHER_SETTINGS = [
    *(
        "data",
        "base_model",
        "task",
        "device",
        "compute",
        "epochs",
        "batch",
        "imgsz",
        "pretrained",
        "split",
        "split_seed",
    ),
    *("exports", "predictions", "requires", "run_name", "optimization_strategy", "bayesian_config", "preset"),
]


@pytest.mark.parametrize("name", [*OTHER_SETTINGS, *ARGUMENTS, *REFUSED, *IGNORED, "unheard_of"])
def test_a_blank_setting_is_not_given(name):
    for blank in BLANKS:
        assert parse({name: blank}) == parse(None), blank


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize(
    "section", ["advanced_config", "hyperparameters", "args", "augmentation", "optimizer", "scheduler", "validation"],
)  # fmt: skip
def test_a_blank_setting_in_a_section_or_in_json_text_is_not_given(section, blank):
    nested = {section: {"mosaic": blank, "epochs": blank, "type": blank}}

    assert parse(nested) == parse(None)
    assert parse(json.dumps(nested)) == parse(None)
    assert parse({section: json.dumps(nested[section])}) == parse(None)


@pytest.mark.parametrize("blank", BLANKS)
def test_a_blank_setting_does_not_contradict_another_spelling(blank):
    assert parse({"epochs": blank, "num_epochs": 7}).epochs == 7
    assert parse({"mosaic": 0.5, "augmentation": {"mosaic": blank}}).args["mosaic"] == 0.5


@pytest.mark.parametrize("blank", BLANKS)
def test_blank_parts_of_a_setting_are_not_given(blank):
    asked = {
        "train_ratio": 0.7,
        "val_ratio": blank,
        "test_ratio": blank,
        "seed": blank,
        "method": blank,
        "splits": blank,
    }

    assert parse({"split": asked}).split == SplitRequest(train_ratio=0.7)
    assert parse({"split": dict.fromkeys(asked, blank)}) == parse(None)
    assert parse({"requires": {"gpus": blank, "gpu_memory_gb": 8}}) == parse({"requires": {"gpu_memory_gb": 8}})
    assert parse({"requires": dict.fromkeys(("gpus", "gpu_memory_gb"), blank)}) == parse(None)


@pytest.mark.parametrize("value", [0, False, 0.0])
def test_zero_and_false_are_given(value):
    assert parse({"mosaic": value}).args["mosaic"] == 0
    assert parse({"exports": False}).exports == ()
    assert problems({"epochs": value})


@pytest.mark.parametrize("name", [*OTHER_SETTINGS, *ARGUMENTS, *REFUSED, *IGNORED, "unheard_of"])
def test_a_value_nested_1500_levels_deep_never_raises_anything_but_a_bad_request(name):
    for first in ([], {}):
        value = first
        for _ in range(1500):
            value = [value] if first == [] else {"gpus": value}
        try:
            parse({name: value})
        except BadRequest as refused:
            assert all(len(problem) < 1000 for problem in refused.problems)  # noqa: PT017


# ── sections and hints ──


@pytest.mark.parametrize(
    "section", ["training", "config", "train", "Training", "trainingConfig", "training_config", "configuration"]
)
def test_settings_in_a_section_are_read(section):
    plan = parse({section: {"epochs": 7, "batchSize": 4, "optimizer": {"type": "sgd", "lr": 0.1}}})

    assert (plan.epochs, plan.batch, plan.args) == (7, 4, {"optimizer": "SGD", "lr0": 0.1})
    assert plan.warnings == ()


def test_sections_may_be_nested_up_to_three_deep():
    assert parse({"config": {"training": {"augmentation": {"mosaic": 0.5}}}}).args["mosaic"] == 0.5
    assert parse({"config": {"training": {"params": {"args": {"epochs": 3}}}}}).epochs == 100


def test_wrong_value_in_a_section_is_reported_with_its_path():
    assert problems({"training": {"batchSize": 0}})[0].startswith(
        "training.batchSize = 0: must be a whole number from 1"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [("lerning_rate", "lr0"), ("batchsiz", "batch"), ("mosaik", "mosaic")],
)
def test_unknown_setting_comes_with_the_nearest_known_one(given, meant):
    (warning,) = parse({given: 1}).warnings
    assert warning.startswith(f"unknown setting {given} was ignored")
    assert warning.endswith(f"did you mean {meant}?")


def test_problems_are_in_the_order_of_the_row():
    wrong = {"epochs": 0, "lr0": "fast", "batch": 0, "mosaic": 7}
    assert [problem.partition(" ")[0] for problem in problems(wrong)] == list(wrong)


@pytest.mark.parametrize("value", [float("nan"), 0.0, False])
def test_value_that_differs_from_itself_does_not_disagree(value):
    assert all("two spellings" not in problem for problem in problems({"epochs": value}))
