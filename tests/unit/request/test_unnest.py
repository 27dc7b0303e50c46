"""Names, sections and blank values of a configuration."""

import json

import pytest

from tests.unit.request.reading import parse, problems
from trainer.core.dataset import SplitRequest
from trainer.core.errors import BadRequest
from trainer.request.configuration import ARGUMENTS
from trainer.request.train_arguments import IGNORED, REFUSED

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
def test_other_spellings_of_setting_names_are_read(configuration, expected):
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
def test_train_arguments_are_read_under_any_name_and_section(configuration, name, value):
    plan = parse(configuration)
    assert plan.args[name] == value
    assert plan.warnings == ()


def test_unknown_setting_is_a_warning_with_nearest_name():
    plan = parse({"epoch_count": 3, "learningRat": 1, "foo": {"a": 1}, "augmentation": {"wobble": 1}})
    assert plan.warnings == (
        "unknown setting epoch_count was ignored",
        "unknown setting learningRat was ignored; did you mean lr0?",
        "unknown setting foo was ignored",
        "unknown setting augmentation.wobble was ignored",
    )


@pytest.mark.parametrize("preset", [{"augmentation": "strong"}, {"augmentation": {"preset": "strong"}}])
def test_augmentation_preset_without_values_is_a_warning(preset):
    (warning,) = parse(preset).warnings
    assert warning.startswith("augmentation")
    assert "send the augmentation's values" in warning
    assert parse({"augmentation": {"preset": "none"}}).warnings == ()


def test_warnings_and_problems_are_limited_to_50():
    plan = parse({f"setting_{number}": number for number in range(20_000)})
    assert len(plan.warnings) == 51
    assert plan.warnings[-1] == "and 19950 more"
    found = problems(
        {"".join(c.upper() if n >> i & 1 else c for i, c in enumerate("epochs")): n + 1 for n in range(64)}
    )
    assert len(found) == 51


def test_two_names_of_one_setting_with_same_value_are_accepted():
    assert parse({"batch": 8, "batchSize": 8}).batch == 8


def test_two_names_of_one_setting_with_different_values_are_rejected():
    assert problems({"batch": 8, "batchSize": 16}) == (
        "batch = 8 and batchSize = 16: two spellings of the same setting must agree; keep one",
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_nested_setting_has_priority_over_flat_setting(reverse):
    items = [("imgsz", 640), ("advanced_config", {"imgsz": 1280})]
    plan = parse(dict(reversed(items) if reverse else items))
    assert plan.imgsz == 1280
    assert plan.warnings == ("imgsz = 640 was ignored: advanced_config.imgsz = 1280 is in a deeper section",)


# ── sections ──


@pytest.mark.parametrize(
    "section", ["training", "config", "train", "Training", "trainingConfig", "training_config", "configuration"]
)
def test_settings_in_a_section_are_read(section):
    plan = parse({section: {"epochs": 7, "batchSize": 4, "optimizer": {"type": "sgd", "lr": 0.1}}})

    assert (plan.epochs, plan.batch, plan.args) == (7, 4, {"optimizer": "SGD", "lr0": 0.1})
    assert plan.warnings == ()


def test_sections_are_read_up_to_three_levels_deep():
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
def test_warning_about_unknown_setting_suggests_nearest_name(given, meant):
    (warning,) = parse({given: 1}).warnings
    assert warning.startswith(f"unknown setting {given} was ignored")
    assert warning.endswith(f"did you mean {meant}?")


def test_problems_are_in_the_order_of_the_row():
    wrong = {"epochs": 0, "lr0": "fast", "batch": 0, "mosaic": 7}
    assert [problem.partition(" ")[0] for problem in problems(wrong)] == list(wrong)


@pytest.mark.parametrize("value", [float("nan"), 0.0, False])
def test_single_setting_is_not_reported_as_two_spellings(value):
    assert all("two spellings" not in problem for problem in problems({"epochs": value}))


# ── blank values ──


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


@pytest.mark.parametrize("name", [*OTHER_SETTINGS, *ARGUMENTS, *REFUSED, *IGNORED, "unknown_setting"])
def test_blank_setting_means_default(name):
    for blank in BLANKS:
        assert parse({name: blank}) == parse(None), blank


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize(
    "section", ["advanced_config", "hyperparameters", "args", "augmentation", "optimizer", "scheduler", "validation"],
)  # fmt: skip
def test_blank_setting_in_section_or_json_text_means_default(section, blank):
    nested = {section: {"mosaic": blank, "epochs": blank, "type": blank}}

    assert parse(nested) == parse(None)
    assert parse(json.dumps(nested)) == parse(None)
    assert parse({section: json.dumps(nested[section])}) == parse(None)


@pytest.mark.parametrize("blank", BLANKS)
def test_blank_setting_does_not_conflict_with_value_under_other_name(blank):
    assert parse({"epochs": blank, "num_epochs": 7}).epochs == 7
    assert parse({"mosaic": 0.5, "augmentation": {"mosaic": blank}}).args["mosaic"] == 0.5


@pytest.mark.parametrize("blank", BLANKS)
def test_blank_value_in_split_or_requires_means_default(blank):
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
def test_zero_and_false_are_not_blank(value):
    assert parse({"mosaic": value}).args["mosaic"] == 0
    assert parse({"exports": False}).exports == ()
    assert problems({"epochs": value})


@pytest.mark.parametrize("name", [*OTHER_SETTINGS, *ARGUMENTS, *REFUSED, *IGNORED, "unknown_setting"])
def test_deeply_nested_value_is_accepted_or_raises_bad_request(name):
    for first in ([], {}):
        value = first
        for _ in range(1500):
            value = [value] if first == [] else {"gpus": value}
        try:
            parse({name: value})
        except BadRequest as refused:
            assert all(len(problem) < 1000 for problem in refused.problems)  # noqa: PT017
