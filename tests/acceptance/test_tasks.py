"""Each task is tested with the whole service: dataset, row, training, fine-tuning, export."""

import json

import pytest

from tests.acceptance.service import running
from tests.dataset_layouts import dice
from tests.dataset_painter import drawn, paint
from tests.long import long_except
from trainer.core.dataset import Task

pytestmark = pytest.mark.training

CONFIGURATION = {"epochs": 1, "imgsz": 32, "batch": 4, "workers": 0, "compute": "cpu", "plots": False}
METRIC = {
    Task.DETECT: "metrics/mAP50-95(B)",
    Task.SEGMENT: "metrics/mAP50-95(M)",
    Task.POSE: "metrics/mAP50-95(P)",
    Task.OBB: "metrics/mAP50-95(B)",
    Task.CLASSIFY: "metrics/accuracy_top1",
}


def classes(root):
    """Create a dataset of class folders."""
    for split, count in (("train", 8), ("val", 4)):
        for number in range(count):
            folder = root / split / ("square" if number % 2 == 0 else "disc")
            folder.mkdir(parents=True, exist_ok=True)
            drawn(number).image.save(folder / f"{number}.jpg")
    return root


@pytest.mark.parametrize("task", long_except(Task))
def test_model_of_each_task_is_trained_fine_tuned_and_exported(tmp_path, task):
    root = tmp_path / "data"
    data = classes(root) if task is Task.CLASSIFY else paint(root, train=8, val=4, task=task)
    configuration = CONFIGURATION | {"task": task.value}
    with running(tmp_path / "home", LEASE_SECONDS=30) as service:
        first = service.enqueue(data, **configuration)
        row = service.wait(first, "completed", "failed", seconds=240)
        assert row["status"] == "completed", row["error_message"]
        assert row["results"]["dataset"]["task"] == task.value
        assert METRIC[task] in row["results"]["metrics"]

        configuration |= {"export": ["torchscript"], "predictions": True}
        arguments = ["enqueue", "--data", str(data), "--model", first, "--config", json.dumps(configuration)]
        row = service.wait(service.json(*arguments)["id"], "completed", "failed", seconds=240)

    assert row["status"] == "completed", row["error_message"]
    assert row["results"]["plan"]["model"] == {"kind": "run", "run_id": first}
    published = {artifact["name"] for artifact in row["results"]["artifacts"]}
    assert {"best.pt", "best.torchscript", "results.csv"} <= published
    if task is not Task.CLASSIFY:
        assert "predictions.jsonl" in published


@pytest.mark.long
def test_dice_dataset_is_trained_on(tmp_path):
    """The file has nested annotations, a background class, other category IDs than YOLO, and a split by ID."""
    for name, content in dice().files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with running(tmp_path / "home", LEASE_SECONDS=30) as service:
        run_id = service.enqueue(tmp_path / "data" / "annotations.json", **CONFIGURATION)
        row = service.wait(run_id, "completed", "failed", seconds=240)

    assert row["status"] == "completed", row["error_message"]
    assert row["results"]["dataset"]["images"] == {"train": 2, "val": 2}
    assert list(row["results"]["dataset"]["labels"]["train"]) == ["cat"]
