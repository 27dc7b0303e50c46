"""The catalog of models: comparison with the installed Ultralytics, and usual spellings of model names."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from trainer.core import model_catalog
from trainer.core.dataset import Task
from trainer.core.errors import BadRequest
from trainer.core.model import OfficialModel

PACKAGE = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0])
PACKAGED = {path.stem for path in (PACKAGE / "cfg" / "models").rglob("*.yaml")}


def published() -> set[str]:
    """Return the model file names that Ultralytics lists. The source is parsed, because an import would load torch."""
    tree = ast.parse((PACKAGE / "utils" / "downloads.py").read_text())
    node = next(n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "GITHUB_ASSETS_NAMES")
    return set(eval(compile(ast.Expression(node.value), "assets", "eval"), {"frozenset": frozenset}))


def unsized(name: str) -> str:
    return re.sub(r"(\d+)[nslmx](?=-|$)", r"\1", name, count=1)


def names(table) -> set[str]:
    return {name for by_task in table.values() for name in by_task.values()}


def test_every_weights_file_in_catalog_is_published():
    assert {f"{name}.pt" for name in names(model_catalog.WEIGHTS)} <= published()


def test_every_published_weights_file_is_in_catalog_or_rejected_with_reason():
    weights = {name.removesuffix(".pt") for name in published() if name.endswith(".pt")}
    missing = {name for name in weights - names(model_catalog.WEIGHTS) if not model_catalog.untrainable(name)}
    assert missing == set()


def test_untrainable_published_files_are_recognized_by_name():
    weights = {name.removesuffix(".pt") for name in published() if name.endswith(".pt")}
    assert {name for name in weights if model_catalog.is_untrainable_file(name)} == weights - names(
        model_catalog.WEIGHTS
    )


@pytest.mark.parametrize("own", ["nas_v2", "my-world", "samples", "sam2_b-finetuned", "yolo26n-semi", "hero-sam_b"])
def test_user_file_is_not_rejected_if_its_name_resembles_untrainable_file(own):
    assert not model_catalog.is_untrainable_file(own)


def test_no_model_of_catalog_has_a_reason_to_be_untrainable():
    everything = names(model_catalog.WEIGHTS) | names(model_catalog.ARCHITECTURES)
    assert {name for name in everything if model_catalog.untrainable(name)} == set()


def test_every_architecture_in_catalog_is_packaged():
    assert {n for n in names(model_catalog.ARCHITECTURES) if not {n, unsized(n)} & PACKAGED} == set()


def test_every_packaged_architecture_is_in_catalog_or_rejected_with_reason():
    served = {unsized(name) for name in names(model_catalog.ARCHITECTURES)} | names(model_catalog.ARCHITECTURES)
    assert {name for name in PACKAGED - served if not model_catalog.untrainable(name)} == set()


@pytest.mark.parametrize(
    ("spelling", "stem", "task"),
    [
        ("YOLOv8s", "yolov8s", None),
        ("yolov8s", "yolov8s", None),
        ("yolo8s", "yolov8s", None),
        ("yolo-v8-s", "yolov8s", None),
        ("YOLOv8 small", "yolov8s", None),
        ("YOLO11n", "yolo11n", None),
        ("yolov11n", "yolo11n", None),
        ("YOLO 11 n", "yolo11n", None),
        ("yolo11 nano", "yolo11n", None),
        ("yolo_11_xlarge", "yolo11x", None),
        ("yolo11n-seg", "yolo11n", Task.SEGMENT),
        ("yolo11n_seg", "yolo11n", Task.SEGMENT),
        ("YOLO11n-segment", "yolo11n", Task.SEGMENT),
        ("yolov8x-cls", "yolov8x", Task.CLASSIFY),
        ("yolov8m-pose", "yolov8m", Task.POSE),
        ("yolo26l-obb", "yolo26l", Task.OBB),
        ("yolo11s-detect", "yolo11s", Task.DETECT),
        ("yolov5n", "yolov5nu", None),
        ("yolov5nu", "yolov5nu", None),
        ("yolov5x6", "yolov5x6u", None),
        ("yolov3", "yolov3u", None),
        ("yolov3-tiny", "yolov3-tinyu", None),
        ("yolov9c", "yolov9c", None),
        ("yolov9e-seg", "yolov9e", Task.SEGMENT),
        ("yolov10b", "yolov10b", None),
        ("yolov12m", "yolo12m", None),
        ("yolo26n", "yolo26n", None),
        ("yolo26n-objv1-150", "yolo26n-objv1", None),
        ("yolo26n-objv1-seg", "yolo26n-objv1", Task.SEGMENT),
        ("RTDETR-L", "rtdetr-l", None),
        ("rt-detr-x", "rtdetr-x", None),
        ("yolov8x-pose-p6", "yolov8x-p6", Task.POSE),
    ],
)
def test_usual_spellings_of_published_model_are_found(spelling, stem, task):
    assert model_catalog.find_weights(spelling) == OfficialModel(stem=stem, task=task)


@pytest.mark.parametrize(
    "table", [model_catalog.WEIGHTS, model_catalog.ARCHITECTURES], ids=["weights", "architectures"]
)
def test_published_name_is_found_unchanged(table):
    find = model_catalog.find_weights if table is model_catalog.WEIGHTS else model_catalog.find_architecture
    for stem, by_task in table.items():
        assert find(stem).stem == stem
        for task, name in by_task.items():
            match = find(name)
            assert match.stem == stem
            assert table[match.stem][match.task or task] == name


@pytest.mark.parametrize(
    "name", ["EfficientDet-D0", "sam2_b", "FastSAM-s", "yolo_nas_s", "yolov8", "yolo99n", "", "🦆"]
)
def test_unknown_model_is_not_found_and_valid_names_are_suggested(name):
    assert model_catalog.find_weights(name) is None
    offered = model_catalog.nearest(name)
    assert offered
    assert all(model_catalog.find_weights(other) or model_catalog.find_architecture(other[:-5]) for other in offered)


def test_suggested_names_are_similar_to_unknown_name():
    assert "yolo11n" in model_catalog.nearest("yol11n")
    assert set(model_catalog.nearest("yolov9")) <= {"yolov9t", "yolov9s", "yolov9m", "yolov9c", "yolov9e"}


@pytest.mark.parametrize(
    ("stem", "task", "name"),
    [
        ("yolo11n", Task.DETECT, "yolo11n"),
        ("yolo11n", Task.SEGMENT, "yolo11n-seg"),
        ("yolov8x", Task.CLASSIFY, "yolov8x-cls"),
        ("yolo26s", Task.POSE, "yolo26s-pose"),
        ("yolo26s", Task.OBB, "yolo26s-obb"),
        ("yolov9c", Task.SEGMENT, "yolov9c-seg"),
        ("yolo26n-objv1", Task.DETECT, "yolo26n-objv1-150"),
    ],
)
def test_stem_and_task_give_published_name(stem, task, name):
    assert model_catalog.resolve_name(stem, task) == name


def test_stem_without_weights_for_task_is_rejected_with_alternatives():
    with pytest.raises(
        BadRequest, match=r"yolov10n has no published weights for the task segment \(only for detect\).*yolo11n-seg"
    ):
        model_catalog.resolve_name("yolov10n", Task.SEGMENT)
    with pytest.raises(BadRequest, match=r"yolo12n-pose\.yaml \(from scratch\)"):
        model_catalog.resolve_name("yolo12n", Task.POSE)


def test_architecture_exists_for_task_without_weights():
    assert model_catalog.resolve_name("yolo12n", Task.POSE, scratch=True) == "yolo12n-pose"
    assert model_catalog.resolve_name("yolov8n-p6", Task.SEGMENT, scratch=True) == "yolov8n-seg-p6"


def test_list_of_models_has_every_stem_once():
    stems = [entry.stem for entry in model_catalog.entries()]
    assert len(stems) == len(set(stems))
    assert set(stems) == set(model_catalog.WEIGHTS) | set(model_catalog.ARCHITECTURES)
    yolo11n = next(entry for entry in model_catalog.entries() if entry.stem == "yolo11n")
    assert set(yolo11n.weights) == set(yolo11n.architectures) == set(Task)
