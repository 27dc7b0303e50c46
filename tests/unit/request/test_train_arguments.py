"""The train arguments that a row can set, compared with the installed Ultralytics."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.request.reading import PLANNED
from trainer.core import export_formats
from trainer.core.resumption import DEFAULTS as RESUMPTION_DEFAULTS
from trainer.request.configuration import ARGUMENTS, RunConfiguration
from trainer.request.fields import rule_of
from trainer.request.train_arguments import IGNORED, REFUSED

PACKAGE = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0])
DEFAULTS = yaml.safe_load((PACKAGE / "cfg" / "default.yaml").read_text())


def key_set(name: str) -> set[str]:
    """Return one of the CFG_…_KEYS of the installed package, without importing the package."""
    tree = ast.parse((PACKAGE / "cfg" / "__init__.py").read_text())
    node = next(n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == name)
    return set(eval(compile(ast.Expression(node.value), name, "eval"), {"frozenset": frozenset}))


def test_every_argument_of_installed_version_is_in_exactly_one_table():
    tables = [set(ARGUMENTS), set(REFUSED), set(IGNORED), set(PLANNED)]
    assert set(DEFAULTS) - set().union(*tables) == set()
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_installed_version_has_every_allowed_argument():
    assert set(ARGUMENTS) <= set(DEFAULTS)


def test_dangerous_arguments_are_not_allowed():
    dangerous = {
        *("model", "pretrained", "distill_model", "resume", "cfg", "data", "project", "name", "save_dir", "exist_ok"),
        *(
            "device",
            "profile",
            "compile",
            "source",
            "tracker",
            "augmentations",
            "quantize",
            "mode",
            "task",
            "callbacks",
        ),
    }
    assert dangerous & set(ARGUMENTS) == set()


def test_every_rejected_or_ignored_argument_has_reason():
    assert all(len(reason.split()) >= 4 for reason in [*REFUSED.values(), *IGNORED.values()])


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"save"}))
def test_default_of_installed_version_is_valid(name):
    default = DEFAULTS[name]
    if default is not None:
        assert read(name, default) == default


def test_argument_types_match_installed_version():
    for name in key_set("CFG_INT_KEYS") & set(ARGUMENTS):
        assert type(read(name, 1)) is int, name
    for name in key_set("CFG_BOOL_KEYS") & set(ARGUMENTS):
        assert read(name, True) is True, name
    for name in (key_set("CFG_FRACTION_KEYS") | key_set("CFG_FLOAT_KEYS")) & set(ARGUMENTS):
        assert type(read(name, 0.5)) is float, name


def test_value_outside_range_of_installed_version_is_rejected():
    for name in key_set("CFG_FRACTION_KEYS") & set(ARGUMENTS) - {"fraction"}:
        with pytest.raises(ValueError):
            read(name, 1.01)
        with pytest.raises(ValueError):
            read(name, -0.01)


def read(name: str, value: object) -> object:
    """Return `value` as parsed in the configuration of a run."""
    return getattr(RunConfiguration.model_validate({name: value}), name)


NAN, INF = float("nan"), float("inf")
FLAGS = [
    (True, True),
    (False, False),
    ("true", True),
    ("False", False),
    ("yes", True),
    ("0", False),
    (1, True),
    (0, False),
]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *[("cos_lr", given, flag) for given, flag in FLAGS],
        ("patience", 16, 16),
        ("patience", 16.0, 16),
        ("patience", "16", 16),
        ("patience", " 16 ", 16),
        ("patience", "1e2", 100),
        ("patience", 0, 0),
        ("save_period", -1, -1),
        ("save", True, True),
        ("lr0", "0.01", 0.01),
        ("lr0", 1, 1.0),
        ("lr0", "1e-4", 1e-4),
        ("lr0", ".5", 0.5),
        ("time", 0.5, 0.5),
        ("optimizer", "adamw", "AdamW"),
        ("optimizer", "rmsprop", "RMSProp"),
        ("optimizer", "AUTO", "auto"),
        ("cache", True, True),
        ("cache", "ram", "ram"),
        ("cache", "Disk", "disk"),
        ("cache", "false", False),
        ("amp", "BF16", "bf16"),
        ("amp", "true", True),
        ("freeze", 10, 10),
        ("freeze", [0, 1, "23.cv2"], [0, 1, "23.cv2"]),
        ("freeze", ["2", "23.0", "0.8"], [2, "23.0", "0.8"]),
        ("fraction", 0.5, 0.5),
        ("fraction", 1, 1.0),
        ("fraction", 500, 500),
        ("fraction", [0.5, 1], [0.5, 1.0]),
        ("fraction", [100, 20, 0], [100, 20, 0.0]),
        ("scale", 0.9, 0.9),
        ("scale", [0.5, 2], [0.5, 2.0]),
        ("classes", 3, [3]),
        ("classes", [0, "2"], [0, 2]),
        ("mosaic", True, 1.0),
        ("mosaic", "no", 0.0),
        ("mosaic", "0.5", 0.5),
        ("auto_augment", "AugMix", "augmix"),
        ("seed", 2**31 - 1, 2**31 - 1),
    ],
)
def test_value_in_other_spelling_or_type_is_accepted(name, value, expected):
    found = read(name, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("patience", bad)
            for bad in (-1, 16.5, "16.5", "sixteen", "", NAN, INF, True, None, [], {}, "0x10", "1_000", "\u0661")
        ],
        *[("lr0", bad) for bad in (0, -0.1, 1.5, NAN, INF, -INF, "nan", "inf", "1e999", True, "", [0.1], 10**400)],
        *[("cos_lr", bad) for bad in ("maybe", 2, 0.5, None, [True], "")],
        *[("cache", bad) for bad in ("gpu", "../x", 7, None)],
        *[("amp", bad) for bad in ("fp8", 2, None)],
        *[("optimizer", bad) for bad in ("Lion", "torch.optim.SGD", 3, None, ["SGD"])],
        *[("freeze", bad) for bad in (-1, [-1], ["model"], ["0.__class__()"], [[0]], "0.cv2", [0] * 1001)],
        *[("fraction", bad) for bad in (0, -1, 1.5, True, [1], [0, 1], [1, 0], [1, 1, 1, 1], "all", 10**30)],
        *[("scale", bad) for bad in (1.5, -0.1, [0.5], [2, 1], [0, 1], ["a", "b"], [NAN, 1])],
        *[("classes", bad) for bad in (-1, [], [-1], "car", [0.5])],
        *[("mosaic", bad) for bad in (1.1, -0.1, "often", NAN)],
        ("save", False),
        ("workers", 65),
        ("seed", -1),
        ("seed", 2**31),
        ("time", 0),
        ("mask_ratio", 0),
        ("max_det", 0),
        ("degrees", 181),
    ],
)
def test_invalid_value_is_rejected(name, value):
    with pytest.raises(ValueError):
        read(name, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-1, -1), ("-1", -1), ("auto", -1), (0.6, 0.6), ("0.6", 0.6), (1, 1), (1.0, 1), ("16", 16), (4096, 4096)],
)
def test_batch_is_read_in_all_forms(value, expected):
    found = read("batch", value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", [0, -2, 16.5, 4097, True, "many", NAN, [16]])
def test_invalid_batch_is_rejected(value):
    with pytest.raises(ValueError):
        read("batch", value)


BOUNDS = """
time 8760 | patience 0 100000 | save_period -1 | cache ram disk true | workers 0 64 | optimizer musgd rmsprop auto
seed 0 2147483647 | amp bf16 false | fraction 0.5 1 500 [0.5,1] [100,20,0] | freeze 0 [0,"23.cv2"] | multi_scale 0 1
mask_ratio 1 32 | dropout 0 1 | conf 0 1 | iou 0 1 | max_det 1 | lr0 0.00001 1 | lrf 0 1 | warmup_epochs 0 2.5 | box 0
cls_pw 1 | nbs 1 | degrees 180 | scale 0 1 [0.5,2] | shear 180 | perspective 1 | mosaic true | erasing 1 | classes 3 [0,2]
copy_paste_mode mixup | auto_augment augmix | close_mosaic 0 | channels_last true | nms false | momentum 0 1
"""
ASK_ULTRALYTICS = """
import json, sys
from ultralytics.cfg import get_cfg
for name, value in json.load(sys.stdin):
    get_cfg(overrides={name: value})
"""


def test_installed_version_accepts_highest_and_lowest_allowed_values(tmp_path):
    """Check that Ultralytics accepts the values in `BOUNDS` after the service has parsed them."""
    values = []
    for line in BOUNDS.replace("\n", " | ").split("|"):
        name, *given = line.split() or [None]
        values += [(name, read(name, json.loads(v) if v[0] == "[" else v)) for v in given]
    environment = {"PATH": os.environ["PATH"], "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ASK_ULTRALYTICS]
    done = subprocess.run(
        command, input=json.dumps(values), env=environment, cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert len(values) >= 60
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("epochs", "a whole number from 1 to 100000"),
        ("lr0", "a number above 0 and up to 1"),
        ("optimizer", "one of SGD, MuSGD, Adam, Adamax, AdamW, NAdam, RAdam, RMSProp, auto"),
        ("cos_lr", "true or false"),
    ],
)
def test_rule_describes_valid_values(name, rule):
    assert rule_of(RunConfiguration.model_fields[name]) == rule


def test_defaults_except_optimizer_lr0_and_workers_equal_installed_version():
    different = {name for name, field in ARGUMENTS.items() if field.default != DEFAULTS[name]}
    assert different == {"optimizer", "lr0", "workers"}


def test_resumption_and_row_have_equal_defaults_except_optimizer_lr0_and_workers():
    own = {name: field.default for name, field in ARGUMENTS.items()}
    assert {**own, "optimizer": "auto", "lr0": 0.01} == {**RESUMPTION_DEFAULTS, "workers": None}


def test_every_export_format_of_installed_version_is_in_exactly_one_table():
    tree = ast.parse((PACKAGE / "engine" / "exporter.py").read_text())
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "export_formats")
    rows = next(n.value for n in function.body if isinstance(n, ast.Assign))
    formats = {ast.literal_eval(row)[1] for row in rows.elts} - {"-"}
    assert set(export_formats.PACKAGES) | export_formats.UNSUPPORTED == formats
    assert set(export_formats.PACKAGES) & export_formats.UNSUPPORTED == set()
