"""The fake training process `trains_quickly` of other tests behaves like the real training process."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from dataclasses import replace

import pytest

from trainer.core.errors import MachineFailed, RunFailed
from trainer.core.events import Phase
from trainer.core.run_folder import OutputFolder
from trainer.core.stop import Stopped, StopReason


def test_training_reports_every_phase_and_epoch(program):
    training = program("trains_quickly")

    finished = training.train(epochs=3)

    sent = training.events[-1]
    assert finished == replace(sent, report={**sent.report, "sandbox": []})
    assert [event.phase for event in training.of("phase")] == [
        Phase.LOADING,
        Phase.SCANNING,
        Phase.TRAINING,
        Phase.FINALIZING,
    ]
    assert [event.epoch for event in training.of("epoch")] == [1, 2, 3]
    assert training.lines[0] == "epoch 1/3 line 0: box_loss 1.000"
    assert finished.report["epochs_completed"] == 3


def test_program_writes_the_files_of_a_real_training(program):
    training = program("trains_quickly")

    finished = training.train(epochs=2)

    files = {str(path.relative_to(training.run_dir)) for path in training.run_dir.rglob("*") if path.is_file()}
    assert files >= {"args.yaml", "results.csv", "weights/best.pt", "weights/last.pt"}
    assert finished.best.bytes == (training.run_dir / "weights" / "best.pt").stat().st_size
    assert finished.last.bytes == (training.run_dir / "weights" / "last.pt").stat().st_size
    assert len((training.run_dir / "results.csv").read_text().splitlines()) == 3


def test_checkpoint_events_describe_the_checkpoint_files(program):
    training = program("trains_quickly").behave(checkpoint_bytes=5000)

    training.train(epochs=2)

    for saved in training.of("checkpoint"):
        path = OutputFolder(training.run_dir).checkpoint(saved.epoch)
        content = path.read_bytes()
        facts = json.loads(path.with_suffix(".json").read_text())
        assert len(content) == saved.bytes == facts["bytes"] == 5000
        assert hashlib.sha256(content).hexdigest() == saved.sha256 == facts["sha256"]
        assert facts["epoch"] == saved.epoch


def test_program_resumes_from_checkpoint(program):
    training = program("trains_quickly").behave(at_epoch=3, exit=7)
    with pytest.raises(MachineFailed, match="exit code 7"):
        training.train(epochs=4)
    newest = training.of("checkpoint")[-1]
    training.events.clear()

    training.behave(at_epoch=3, exit=7, only_fresh=True).train(
        epochs=4, resume=OutputFolder(training.run_dir).checkpoint(newest.epoch), last_reported_epoch=1
    )

    assert newest.epoch == 2
    assert [event.epoch for event in training.of("epoch")] == [2, 3, 4]
    rows = (training.run_dir / "results.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"at_epoch": 0, "exit": 5}, MachineFailed, "starting.*exit code 5"),
        ({"at_epoch": 2, "signal": int(signal.SIGKILL)}, MachineFailed, "SIGKILL"),
        ({"at_epoch": "finalizing", "exit": 1, "print": "no room for plots"}, MachineFailed, "no room for plots"),
        (
            {
                "at_epoch": 1,
                "crash": {"error": "RuntimeError", "message": "Training failed: NaN persisted for 4 epochs"},
            },
            RunFailed,
            "diverged",
        ),
    ],
)
def test_program_fails_as_requested(program, options, error, words):
    with pytest.raises(error, match=words):
        program("trains_quickly").behave(**options).train()


def test_program_hangs_on_request(program):
    training = program("trains_quickly", stall=0.3).behave(at_epoch=1, hang=True)

    with pytest.raises(MachineFailed, match="stuck"):
        training.train()


def test_program_that_ignores_signals_is_killed(program, monkeypatch):
    monkeypatch.setattr("trainer.training.supervisor.training_watch._TERM_SECONDS", 0.2)
    training = program("trains_quickly", grace=0.2).behave(
        ignores_signals=True, ignores_stop=True, seconds_per_epoch=30
    )
    training.when(lambda t: t.of("phase"), lambda: training.stop.set(StopReason.CANCELED))
    began = time.monotonic()

    with pytest.raises(Stopped):
        training.train()

    assert time.monotonic() - began < 20


def test_behavior_is_read_from_given_file(program, tmp_path):
    (tmp_path / "options.json").write_text('{"warnings": ["from the file"], "report": {"mAP": 0.9}}')
    training = program("trains_quickly", "--behavior", str(tmp_path / "options.json")).behave(warnings=["not this"])

    assert training.train().report["mAP"] == 0.9
    assert [event.message for event in training.of("warning")] == ["from the file"]
