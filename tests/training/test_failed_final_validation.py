"""A failure after the last epoch does not lose the model. The same plan gives the same model."""

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


@pytest.mark.parametrize("truncate", ["", "1"], ids=["complete weights", "truncated weights"])
@pytest.mark.long
def test_failed_final_validation_keeps_model(detect, tmp_path, truncate):
    order = order_for(detect, tmp_path / "run", epochs=2, exports=("torchscript",))
    run = run_child(order, tmp_path, program="final_validation_fails.py", env={"TRUNCATE": truncate})

    assert isinstance(run.last, Finished), run.output
    messages = [event.message for event in run.of(Warned) if event.code == "finalization_failed"]
    assert len(messages) == 2
    assert "data.yaml does not exist" in messages[0]
    assert "torchscript" in messages[1]
    for weights in (run.folder.best, run.folder.last):
        assert zipfile.is_zipfile(weights)
        assert Path(weights).stat().st_size < 10e6  # the optimizer state was removed
    assert run.last.report["mAP"] is not None
    assert run.last.report["metrics"]["metrics/mAP50(B)"] is not None
    assert run.last.report["epochs_completed"] == 2


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """Trainings of one plan on equal data in different folders, with the seeds 3, 3 and 4."""
    runs = []
    for seed in (3, 3, 4):
        home = tmp_path_factory.mktemp("seeded")
        order = order_for(draw(home / "data", Task.DETECT), home / "run", args={"seed": seed})
        runs.append(run_child(order, home))
    return runs


def metrics_of(run):
    return [event.metrics for event in run.of(EpochFinished)]


@pytest.mark.long
def test_same_seed_gives_same_metrics(seeded):
    first, second, _ = seeded

    assert len(metrics_of(first)) == 1
    assert metrics_of(first) == metrics_of(second)
    assert first.last.report["metrics"] == second.last.report["metrics"]
    assert first.last.report["environment"]["seed"] == 3


@pytest.mark.long
def test_other_seed_gives_other_metrics(seeded):
    first, _, other = seeded

    assert metrics_of(first) != metrics_of(other)
