"""Read configurations in tests: `parse` returns the plan, and `problems` returns the reasons for a rejection."""

import pytest

from trainer.core.errors import BadRequest
from trainer.core.job import RunRequest
from trainer.core.plan import TrainPlan
from trainer.request.parse import plan_of

RUN = "0b6f3c1e-2f7a-4c1d-9a54-6d1f0f0f8a11"

# a plan has a separate field for each of these arguments of Ultralytics
PLANNED = frozenset({"task", "model", "data", "epochs", "batch", "imgsz", "device", "split", "pretrained"})

# the configuration that the web app sends for its preset "balanced"
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
