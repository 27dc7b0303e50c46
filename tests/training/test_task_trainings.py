"""A tiny real training of each task on the CPU."""

import csv
import hashlib
import json

import pytest
from child_run import order_for, run_child
from drawn import NAMES, draw

from tests.long import long_except
from trainer.core.dataset import Task
from trainer.core.events import CheckpointSaved, EpochFinished, Finished, Phase, PhaseStarted, Warned

pytestmark = pytest.mark.training

LOSSES = {
    Task.DETECT: {"box", "cls", "dfl"},
    Task.SEGMENT: {"box", "seg", "cls", "dfl", "sem"},
    Task.POSE: {"box", "pose", "kobj", "cls", "dfl"},
    Task.OBB: {"box", "cls", "dfl", "angle"},
}
METRICS = {
    Task.DETECT: ("mAP50-95(B)", "precision(B)"),
    Task.SEGMENT: ("mAP50-95(M)", "recall(B)"),
    Task.POSE: ("mAP50-95(P)", "recall(B)"),
    Task.OBB: ("mAP50-95(B)", "recall(B)"),
    Task.CLASSIFY: ("accuracy_top1", "accuracy_top5"),
}
WITH_ALL_OPTIONS = Task.DETECT  # plots, a test split and an export take time, so only one task has them


@pytest.fixture(scope="module", params=long_except(Task, WITH_ALL_OPTIONS, Task.CLASSIFY), ids=lambda task: task.value)
def trained(request, tmp_path_factory):
    task = request.param
    home = tmp_path_factory.mktemp(task.value)
    all_options = task is WITH_ALL_OPTIONS
    dataset = draw(home / "data", task, test=4 if all_options else 0)
    order = order_for(
        dataset,
        home / "run",
        epochs=2,
        predictions=True,
        exports=("torchscript",) if all_options else (),
        args={"plots": all_options},
    )
    return task, run_child(order, home, program="audited.py"), home / "run"


def report(run):
    assert isinstance(run.last, Finished), run.output
    return run.last.report


def test_training_ends_with_weights_and_exit_code_0(trained):
    _, run, run_dir = trained

    assert isinstance(run.last, Finished), run.output
    assert run_dir / "weights" / "best.pt" == run.folder.best
    assert run.process.returncode == 0
    assert not run.of(Warned)


def test_final_event_has_size_and_checksum_of_weights(trained):
    _, run, _ = trained

    for path, weights in ((run.folder.best, run.last.best), (run.folder.last, run.last.last)):
        content = path.read_bytes()
        assert (weights.bytes, weights.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_phases_are_in_order(trained):
    phases = [event.phase for event in trained[1].of(PhaseStarted)]

    loop = [Phase.TRAINING, Phase.VALIDATING]
    assert phases == [Phase.LOADING, Phase.SCANNING, *loop, *loop, Phase.FINALIZING]


def test_each_epoch_is_reported_once_with_its_metrics(trained):
    task, run, run_dir = trained
    epochs = run.of(EpochFinished)

    assert [(event.epoch, event.total_epochs) for event in epochs] == [(1, 2), (2, 2)]
    names = {f"{name}_loss" for name in LOSSES.get(task, set())} or {"loss"}
    for event in epochs:
        expected = {f"{split}/{name}" for split in ("train", "val") for name in names}
        expected |= {f"metrics/{name}" for name in METRICS[task]} | {"lr/pg0"}
        assert expected <= event.metrics.keys()
    with (run_dir / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for event, row in zip(epochs, rows, strict=True):
        assert event.metrics == pytest.approx({k: float(v) for k, v in row.items() if k in event.metrics}, rel=1e-4)
        assert row.keys() - event.metrics.keys() == {"epoch", "time"}


def test_each_epoch_saves_checkpoint_after_its_event(trained):
    reported = [
        (type(e).__name__, e.epoch) for e in trained[1].events if isinstance(e, EpochFinished | CheckpointSaved)
    ]

    assert reported == [("EpochFinished", 1), ("CheckpointSaved", 1), ("EpochFinished", 2), ("CheckpointSaved", 2)]


def test_report_has_metrics_classes_speed_and_environment(trained):
    task, run, _ = trained
    facts = report(run)

    assert 0 <= facts["mAP"] <= 1
    main = f"metrics/{METRICS[task][0]}"
    assert facts["mAP"] == facts["metrics"][main]
    summary = {"top1", "top5"} if task is Task.CLASSIFY else {"mAP50", "precision", "recall"}
    assert all(isinstance(facts[name], float) for name in summary)
    assert {row["name"] for row in facts["per_class"]} <= set(NAMES)
    assert facts["epochs_completed"] == 2
    assert facts["best_epoch"] in (1, 2)
    assert facts["train_seconds"] > 0
    assert facts["images_per_second"] > 0
    assert facts["environment"]["torch"].startswith("2.")
    assert len(json.dumps(facts)) < 256 * 1024


def test_curves_have_bounded_length(trained):
    task, run, _ = trained
    curves = report(run)["curves"]

    assert bool(curves) == (task is not Task.CLASSIFY)
    for name in curves.keys() - {"classes"}:
        assert len(curves[name]["mean"]) == 101
        assert len(curves[name]["per_class"]) == len(curves["classes"])


def test_every_validation_image_has_predictions(trained):
    task, run, run_dir = trained
    lines = (run_dir / "predictions.jsonl").read_text().splitlines()

    assert report(run)["predictions"] == {"file": "predictions.jsonl", "images": 8}
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 8
    assert all(row["width"] == 64 for row in rows)
    if task is Task.CLASSIFY:
        assert rows[0]["predictions"][0]["name"] in NAMES


def test_training_uses_no_network_and_installs_nothing(trained):
    audited = [line for line in trained[1].output.splitlines() if line.startswith("AUDIT")]

    assert not [line for line in audited if "socket." in line and "'/" not in line]
    assert not [line for line in audited if "pip" in line or "git" in line]


@pytest.mark.parametrize("trained", [WITH_ALL_OPTIONS], ids=["detect"], indirect=True)
def test_test_split_plots_and_export_exist_on_request(trained):
    _, run, run_dir = trained

    assert set(report(run)["test"]["metrics"]) == set(report(run)["metrics"])
    assert report(run)["exports"] == {"torchscript": "best.torchscript"}
    assert (run_dir / "weights" / "best.torchscript").stat().st_size > 1e6
    for plot in ("results.png", "BoxPR_curve.png", "val_batch0_pred.jpg", "labels.jpg"):
        assert (run_dir / plot).stat().st_size > 1000
