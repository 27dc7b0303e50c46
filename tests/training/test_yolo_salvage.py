"""A training whose last epoch is done has a model, whatever fails afterwards; and the same plan gives the same model."""

import shutil
import zipfile
from pathlib import Path

import pytest
from child_run import order_for, run_child
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import EpochFinished, Finished, Warned

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("detect"), Task.DETECT)


@pytest.mark.parametrize("tear", ["", "1"], ids=["weights whole", "weights torn"])
def test_a_failed_final_validation_costs_a_warning_and_not_the_model(detect, tmp_path, tear):
    order = order_for(detect, tmp_path / "run", epochs=2, exports=("torchscript",))
    run = run_child(order, tmp_path, program="final_validation_fails.py", env={"TEAR": tear})

    assert isinstance(run.last, Finished), run.output
    messages = [event.message for event in run.of(Warned) if event.code == "finalisation_failed"]
    assert len(messages) == 2
    assert "data.yaml is gone" in messages[0]
    assert "torchscript" in messages[1]
    for weights in (run.last.best, run.last.last):
        assert zipfile.is_zipfile(weights)
        assert Path(weights).stat().st_size < 10e6  # stripped
    assert run.last.report["mAP"] is not None
    assert run.last.report["metrics"]["metrics/mAP50(B)"] is not None
    assert run.last.report["epochs_completed"] == 2


def test_the_same_plan_and_seed_give_the_same_metrics(detect, tmp_path):
    runs = []
    for name in "ab":
        shutil.copytree(detect.root, tmp_path / name / "data")
        dataset = draw(tmp_path / name / "data", Task.DETECT)
        order = order_for(dataset, tmp_path / name / "run", epochs=2, args={"seed": 3})
        runs.append(run_child(order, tmp_path / name))

    first, second = ([event.metrics for event in run.of(EpochFinished)] for run in runs)
    assert len(first) == 2
    assert first == second
    assert runs[0].last.report["metrics"] == runs[1].last.report["metrics"]
    assert runs[0].last.report["environment"]["seed"] == 3


def test_another_seed_gives_another_training(detect, tmp_path):
    metrics = []
    for seed in (1, 2):
        order = order_for(detect, tmp_path / str(seed), args={"seed": seed})
        metrics.append(run_child(order, tmp_path / f"home{seed}").of(EpochFinished)[0].metrics)

    assert metrics[0] != metrics[1]
