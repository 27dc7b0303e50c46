"""The decision to resume: the setup of the checkpoint is compared with the current row."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from trainer.core.dataset import PreparedDataset, Task
from trainer.core.job import RunRequest
from trainer.core.ports import TrainingOrder
from trainer.core.resumption import CHANGEABLE, DEFAULTS, Resume, Setup, StartOver, decide
from trainer.request.configuration import ARGUMENTS
from trainer.request.parse import plan_of

CONFIGURATION = {"epochs": 100, "batch": 16, "imgsz": 640, "lr0": 0.01, "optimizer": "SGD"}
DATA = PreparedDataset(
    root=Path("/view"), data=Path("/view/data.yaml"), task=Task.DETECT, names=("cat", "dog"), images={"train": 9},
    fingerprint="a" * 64,
)  # fmt: skip


def setup(configuration=None, *, base_model="yolo11n", data_yaml="sets/pets", **dataset):
    request = RunRequest(
        data_yaml=data_yaml, base_model=base_model, configuration=CONFIGURATION | (configuration or {})
    )
    return Setup.of(plan_of(request, workers=3), replace(DATA, **dataset))


NOW = setup()
EDITED = {"fingerprint": "b" * 64}

SAME = {
    "nothing": {},
    "the same values in other spellings": {"configuration": {"batch": "16", "lr0": "1e-2", "optimizer": "sgd"}},
    "default values of Ultralytics": {
        "configuration": {"patience": 100, "mosaic": 1, "fliplr": "0.5", "seed": 0, "amp": True}
    },
    "exports and predictions after the training": {"configuration": {"export": ["torchscript"], "predictions": True}},
    "data loaders": {"configuration": {"workers": 7}},
    "devices": {"configuration": {"device": "0,1", "requires": {"gpus": 2}}},
    "an unknown setting": {"configuration": {"nonsense": 1}},
    "the file name of the model": {"base_model": "YOLO11n.pt"},
    "the task of the dataset": {"configuration": {"task": "detection"}},
    "another location of the same dataset": {"data_yaml": "storage:datasets/pets"},
    "a split that does not change the dataset": {"configuration": {"split": 0.8}},
}


@pytest.mark.parametrize("changed", SAME.values(), ids=SAME)
def test_training_resumes_after_irrelevant_changes(changed):
    assert decide(NOW, setup(**changed), epoch=40, complete=False) == Resume()
    assert decide(NOW, setup(**changed), epoch=100, complete=True) == Resume()


APPLIED = {
    "batch": ({"configuration": {"batch": 8}}, "batch 16 → 8"),
    "imgsz": ({"configuration": {"imgsz": 320}}, "imgsz 640 → 320"),
    "more epochs": ({"configuration": {"epochs": 200}}, "epochs 100 → 200"),
    "fewer epochs": ({"configuration": {"epochs": 41}}, "epochs 100 → 41"),
    "patience": ({"configuration": {"patience": 5}}, "patience 100 → 5"),
    "time": ({"configuration": {"time": 1.5}}, "time default → 1.5"),
    "a time limit and epochs": ({"configuration": {"time": 1.5, "epochs": 3}}, "time default → 1.5"),
    "freeze": ({"configuration": {"freeze": [0, 1]}}, "freeze default → [0, 1]"),
    "validation": ({"configuration": {"conf": 0.1}}, "conf default → 0.1"),
    "dataset content": (EDITED, "the content of the dataset"),
    "a URL with another token": ({**EDITED, "data_yaml": "https://host/x.zip?token=2"}, "the content of the dataset"),
}


@pytest.mark.parametrize(("changed", "change"), APPLIED.values(), ids=APPLIED)
def test_changeable_settings_are_applied_on_resume(changed, change):
    before = setup(data_yaml="https://host/x.zip?token=1") if "data_yaml" in changed else NOW
    assert decide(before, setup(**changed), epoch=40, complete=False) == Resume(changes=(change,))


@pytest.mark.parametrize(("changed", "change"), APPLIED.values(), ids=APPLIED)
def test_completed_training_starts_over_after_changed_setting(changed, change):
    before = setup(data_yaml="https://host/x.zip?token=1") if "data_yaml" in changed else NOW
    decision = decide(before, setup(**changed), epoch=100, complete=True)
    assert decision == StartOver(from_best=True, changes=(change,))


FROM_BEST = {
    "optimizer": ({"optimizer": "Adam"}, ("optimizer SGD → Adam",)),
    "lr0": ({"lr0": 0.001}, ("lr0 0.01 → 0.001",)),
    "augmentation": ({"augmentation": {"mosaic": 0}}, ("mosaic 1.0 → 0.0",)),
    "a removed setting": ({}, ("hsv_h 0.1 → 0.015",)),
    "changeable and fixed settings": ({"batch": 8, "seed": 3, "mixup": 0.1}, ("mixup 0.0 → 0.1", "seed 0 → 3")),
    "fewer epochs than already trained": ({"epochs": 40}, ("epochs 100 → 40",)),
}


@pytest.mark.parametrize(("configuration", "changes"), FROM_BEST.values(), ids=FROM_BEST)
def test_training_starts_over_from_best_weights_after_other_changes(configuration, changes):
    before = setup({"hsv_h": 0.1}) if "hsv_h" in changes[0] else NOW
    assert decide(before, setup(configuration), epoch=40, complete=False) == StartOver(from_best=True, changes=changes)


FROM_SCRATCH = {
    "model": ({"base_model": "yolo11s"}, "base_model yolo11n → yolo11s"),
    "the network without its weights": ({"base_model": "yolo11n.yaml"}, "base_model yolo11n → yolo11n.yaml"),
    "task": ({"task": Task.SEGMENT, **EDITED}, "task detect → segment"),
    "class names": ({"names": ("cat", "cow"), **EDITED}, "the class names"),
    "order of the class names": ({"names": ("dog", "cat"), **EDITED}, "the class names"),
    "dataset": ({"data_yaml": "sets/zoo", **EDITED}, "data_yaml sets/pets → sets/zoo"),
    "split": ({"configuration": {"split": 0.9}, **EDITED}, "split"),
}


@pytest.mark.parametrize(("changed", "change"), FROM_SCRATCH.values(), ids=FROM_SCRATCH)
def test_training_of_other_model_or_dataset_starts_from_scratch(changed, change):
    assert decide(NOW, setup(**changed), epoch=40, complete=False) == StartOver(from_best=False, changes=(change,))
    both = {**changed, "configuration": {**changed.get("configuration", {}), "lr0": 0.5, "batch": 2}}
    assert decide(NOW, setup(**both), epoch=40, complete=True) == StartOver(from_best=False, changes=(change,))


def test_training_resumes_from_checkpoint_without_setup():
    assert decide(None, NOW, epoch=40, complete=False) == Resume()


def test_time_limit_overrides_epochs():
    before = setup({"time": 2})
    assert decide(before, setup({"time": 3}), epoch=700, complete=False) == Resume(changes=("time 2.0 → 3.0",))


def test_number_of_epochs_applies_after_time_limit_is_removed():
    before = setup({"time": 2, "epochs": 3})
    decision = decide(before, setup({"epochs": 3}), epoch=40, complete=False)
    assert decision == StartOver(from_best=True, changes=("time 2.0 → default",))
    assert decide(before, setup({"epochs": 60}), epoch=40, complete=False) == Resume(
        changes=("epochs 3 → 60", "time 2.0 → default"),
    )


# ── the recorded setup ──


def test_setup_is_equal_after_json_round_trip():
    there = setup({"split": {"splits": {"a.jpg": "val"}}, "freeze": [1, 2], "scale": [0.5, 2]})
    back = Setup.from_json(json.loads(json.dumps(there.as_json())))
    assert back == there
    assert decide(back, there, epoch=1, complete=True) == Resume()


def test_class_names_that_are_invalid_in_json_are_equal_after_round_trip():
    from trainer.training.wire import decode_command, encode_order

    there = setup(names=("ca\udce9t", "d\0g"))
    order = TrainingOrder(
        plan=plan_of(RunRequest(data_yaml="x")), model=Path("m"), dataset=DATA, run_dir=Path("r"), setup=there.as_json(),
    )  # fmt: skip
    back = Setup.from_json(json.loads(json.dumps(decode_command(encode_order(order)).setup)))
    assert decide(back, there, epoch=1, complete=True) == Resume()


def test_setup_contains_no_secret_and_is_small():
    many = {f"image {n}.jpg": "train" for n in range(100_000)}
    record = setup({"split": {"splits": many}}, data_yaml="https://me:pass@host/x.zip?token=secret").as_json()
    text = json.dumps(record)
    assert "secret" not in text
    assert "pass" not in text
    assert len(text) < 4000


@pytest.mark.parametrize(
    "nonsense",
    [
        *(None, 3, "x", [], {}, {"model": "x"}),
        *(NOW.as_json() | {name: 3} for name in NOW.as_json()),
        *(NOW.as_json() | {"settings": {"epochs": value}} for value in ({}, [[1]])),
        NOW.as_json() | {"another": 1},
        NOW.as_json() | {"names": [["cat"]]},
    ],
    ids=repr,
)
def test_invalid_setup_becomes_none(nonsense):
    assert Setup.from_json(nonsense) is None


def test_text_of_each_change_is_short_if_recorded_settings_are_invalid():
    odd = replace(NOW, settings={"epochs": "many", "x" * 200: "y" * 5000, "lr0": float("nan"), "freeze": [None, True]})
    decision = decide(odd, NOW, epoch=40, complete=False)
    assert isinstance(decision, StartOver)
    assert all(len(change) < 400 for change in decision.changes)


# ── the tables of settings match the installed Ultralytics ──


def test_defaults_match_installed_ultralytics():
    package = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0])
    installed = yaml.safe_load((package / "cfg" / "default.yaml").read_text())
    assert {name: installed[name] for name in ARGUMENTS} == {**DEFAULTS, "workers": 8}


def test_changeable_settings_match_installed_ultralytics():
    package = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0])
    source = (package / "engine" / "trainer.py").read_text()
    allowed = set(re.findall(r'"(\w+)"', source.partition("allowed = ")[2].partition("}")[0]))
    ours = {"device", "workers", "save_dir"}  # settings of the service
    refused = {"augmentations", "distill_model"}
    assert allowed - ours - refused <= CHANGEABLE
    assert {*ARGUMENTS, "epochs", "batch", "imgsz"} >= CHANGEABLE
