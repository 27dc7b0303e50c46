"""A row is edited between two attempts: settings and start weights of the next training."""

import csv
import dataclasses
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from child_run import order_for, run_child
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import BatchProgress, EpochFinished, Finished, Warned
from trainer.core.resumption import Setup
from trainer.core.stop import StopReason
from trainer.training.wire import encode_stop

pytestmark = pytest.mark.training

ARGS = {"optimizer": "SGD", "lr0": 0.01, "lrf": 0.01, "nbs": 4, "warmup_epochs": 0, "patience": 50}
EPOCHS = 8


def order(dataset, run_dir, *, resume=None, best_of=None, last_reported_epoch=0, **changes):
    """Return a training order with its `Setup`, as the worker creates it."""
    plain = order_for(
        dataset, run_dir, **{"epochs": EPOCHS, "batch": 4, **changes, "args": {**ARGS, **changes.get("args", {})}}
    )
    of_order = {
        "resume": resume,
        "best_of": best_of,
        "last_reported_epoch": last_reported_epoch,
        "setup": Setup.of(plain.plan, dataset).as_json(),
    }
    return replace(plain, **of_order)


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("classify"), Task.CLASSIFY)


@pytest.fixture(scope="module")
def checkpoint(classify, tmp_path_factory):
    """The checkpoint after four of eight epochs, in another folder."""
    home = tmp_path_factory.mktemp("first")

    def stop_after_four(event, process):
        if isinstance(event, EpochFinished) and event.epoch == 4:
            process.stdin.write(encode_stop(StopReason.SHUTDOWN))
            process.stdin.flush()

    run = run_child(order(classify, home / "run"), home, on_event=stop_after_four)
    return Path(shutil.copyfile(run.newest, home / "epoch-00004.pt"))


def args_of(run_dir):
    return yaml.safe_load((run_dir / "args.yaml").read_text())


def epochs_in(run_dir):
    with (run_dir / "results.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def rates(run):
    return [event.metrics["lr/pg0"] for event in run.of(EpochFinished)]


@pytest.mark.long
def test_resumed_training_keeps_unchanged_settings(checkpoint, classify, tmp_path):
    run = run_child(order(classify, tmp_path / "run", resume=checkpoint, last_reported_epoch=4), tmp_path)

    assert isinstance(run.last, Finished), run.output
    trained = args_of(tmp_path / "run")
    assert (trained["batch"], trained["imgsz"], trained["epochs"], trained["patience"]) == (4, 64, EPOCHS, 50)
    assert run.last.report["batch"] == 4
    assert epochs_in(tmp_path / "run") == list(range(1, EPOCHS + 1))


@pytest.mark.long
def test_resumed_training_uses_edited_settings(checkpoint, classify, tmp_path):
    changed = {"batch": 2, "imgsz": 32, "epochs": 6, "args": {"patience": 7, "freeze": 2, "conf": 0.3}}
    run = run_child(order(classify, tmp_path / "run", resume=checkpoint, last_reported_epoch=4, **changed), tmp_path)

    assert isinstance(run.last, Finished), run.output
    trained = args_of(tmp_path / "run")
    names = ("batch", "imgsz", "epochs", "patience", "freeze", "conf")
    assert [trained[name] for name in names] == [2, 32, 6, 7, 2, 0.3]
    assert [event.total_epochs for event in run.of(EpochFinished)] == [6, 6]
    assert {tick.total_batches for tick in run.of(BatchProgress) if tick.phase == "training"} == {8}
    assert epochs_in(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert run.last.report["batch"] == 2


@pytest.mark.long
def test_setting_removed_from_row_returns_to_default(checkpoint, classify, tmp_path):
    plain = order(classify, tmp_path / "run", resume=checkpoint, last_reported_epoch=4, epochs=5)
    plan = replace(plain.plan, args={name: value for name, value in plain.plan.args.items() if name != "patience"})
    run = run_child(replace(plain, plan=plan, setup=Setup.of(plan, classify).as_json()), tmp_path)

    assert isinstance(run.last, Finished), run.output
    assert args_of(tmp_path / "run")["patience"] == 100


@pytest.mark.long
@pytest.mark.parametrize("epochs", [6, 12])
def test_edited_number_of_epochs_changes_learning_rate_schedule(checkpoint, classify, tmp_path, epochs):
    run = run_child(
        order(classify, tmp_path / "a" / "run", resume=checkpoint, last_reported_epoch=4, epochs=epochs), tmp_path / "a"
    )
    straight = run_child(order(classify, tmp_path / "b" / "run", epochs=epochs), tmp_path / "b")

    assert isinstance(run.last, Finished), run.output
    assert rates(run) == rates(straight)[4:]
    assert epochs_in(tmp_path / "a" / "run") == list(range(1, epochs + 1))


def test_checkpoint_records_its_setup(checkpoint, classify):
    from trainer.training.yolo.checkpoint_file import read_progress

    progress = read_progress(checkpoint)
    assert progress.batch == 4
    assert Setup.from_json(progress.setup) == Setup.of(order(classify, Path("/run")).plan, classify)


@pytest.mark.long
def test_training_restarts_from_best_weights_of_checkpoint(checkpoint, classify, tmp_path):
    run = run_child(
        order(classify, tmp_path / "run", best_of=checkpoint, epochs=2, args={"optimizer": "AdamW"}), tmp_path
    )

    assert isinstance(run.last, Finished), run.output
    assert [event.epoch for event in run.of(EpochFinished)] == [1, 2] == epochs_in(tmp_path / "run")
    trained = args_of(tmp_path / "run")
    assert (trained["optimizer"], trained["epochs"]) == ("AdamW", 2)
    assert trained["model"].endswith("checkpoints/start.pt")
    assert "Transferred" in run.output
    assert not run.of(Warned)


@pytest.mark.long
def test_unloadable_best_weights_are_reported_and_base_model_is_trained(classify, tmp_path):
    broken = tmp_path / "epoch-00004.pt"
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("archive/data.pkl", b"no pickle")
    run = run_child(order(classify, tmp_path / "run", best_of=broken, epochs=1), tmp_path)

    assert isinstance(run.last, Finished), run.output
    assert [event.code for event in run.of(Warned)] == ["checkpoint_broken"]
    assert args_of(tmp_path / "run")["model"].endswith("yolo11n-cls.yaml")


@pytest.mark.long
def test_restart_after_out_of_memory_uses_same_best_weights(checkpoint, classify, tmp_path):
    restarted = order(classify, tmp_path / "run", best_of=checkpoint, epochs=1)
    run = run_child(restarted, tmp_path, program="out_of_memory.py", env={"OOM_WHEN": "train:1"})

    assert isinstance(run.last, Finished), run.output
    assert [event.code for event in run.of(Warned)] == ["out_of_memory"]
    assert args_of(tmp_path / "run")["model"].endswith("checkpoints/start.pt")
    assert run.last.report["batch"] == 2


@pytest.mark.long
def test_training_keeps_settings_of_checkpoint_without_setup(checkpoint, classify, tmp_path):
    from trainer.training.yolo.checkpoint_file import read_progress

    older = tmp_path / "epoch-00004.pt"
    facts = {**dataclasses.asdict(read_progress(checkpoint))}
    facts.pop("setup"), facts.pop("batch")
    with zipfile.ZipFile(checkpoint) as before, zipfile.ZipFile(older, "w") as after:
        for info in before.infolist():
            content = json.dumps(facts).encode() if info.filename.endswith("checkpoint.json") else before.read(info)
            after.writestr(info, content)
    run = run_child(
        order(classify, tmp_path / "run", resume=older, last_reported_epoch=4, batch=8, epochs=20), tmp_path
    )

    assert isinstance(run.last, Finished), run.output
    assert (args_of(tmp_path / "run")["batch"], args_of(tmp_path / "run")["epochs"]) == (4, EPOCHS)
