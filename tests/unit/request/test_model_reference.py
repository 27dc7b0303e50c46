"""The base model of a configuration."""

import pytest

from tests.unit.request.reading import RUN, parse, problems
from trainer.core.dataset import ObjectRef, Task
from trainer.core.model import Architecture, ModelFile, ModelObject, ModelOfRun, OfficialModel


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
def test_base_model_is_read(name, model):
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
        ("yolo26n-sem", "not supported"),
        ("yolov6n", "use yolov6n.yaml to train it"),
        ("yolov8", "similar names: yolov8"),
        ("resnet18", "similar names"),
        ("custom.yaml", "only architectures of the installed"),
        ("../yolo11n.yaml", "only architectures of the installed"),
        ("/etc/evil.yaml", "only architectures of the installed"),
        ("/tmp/evil.pt", "must be relative"),
        ("~/evil.pt", "must be relative"),
        ("-evil.pt", "must be relative"),
        ("..\\evil.pt", "must be relative"),
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
        ("best.onnx", "the model is unknown"),
        ("model.engine", "the model is unknown"),
    ],
)
def test_invalid_base_model_is_rejected_with_reason(name, reason):
    (problem,) = problems(base_model=name, artifacts_bucket="b")
    assert problem.startswith("base_model = ")
    assert reason in problem


@pytest.mark.parametrize("bad", [3, ["yolo11n"], {"name": "yolo11n"}, True])
def test_base_model_that_is_not_text_is_rejected(bad):
    (problem,) = problems({"model": bad})
    assert "must be a model's name" in problem


def test_base_model_of_row_has_priority_over_configuration():
    plan = parse({"baseModel": "YOLOv8n"}, base_model="yolo11s")
    assert plan.model == OfficialModel(stem="yolo11s")
    assert plan.warnings == ("baseModel was ignored: the base_model of the row is different",)
    assert parse({"baseModel": "YOLO-11s"}, base_model="yolo11s").warnings == ()


def test_pretrained_false_trains_same_network_from_scratch():
    assert parse({"pretrained": False}, base_model="yolo11n-seg").model == Architecture(
        stem="yolo11n", task=Task.SEGMENT
    )
    assert parse({"pretrained": "no"}, base_model="yolov5n").model == Architecture(stem="yolov5n")
    assert parse({"pretrained": True}, base_model="yolo11n").model == OfficialModel(stem="yolo11n")


def test_pretrained_false_is_rejected_for_weights_without_architecture():
    for name in ("mine.pt", RUN, "yolov8n-oiv7"):
        (problem,) = problems({"pretrained": False}, base_model=name)
        assert problem.startswith("pretrained = False")
