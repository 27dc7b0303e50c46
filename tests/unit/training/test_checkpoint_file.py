"""Checkpoint files are complete and self-contained, have a checksum, and are limited in number."""

import hashlib
import json
import time
import zipfile

import pytest

from trainer.core.run_folder import OutputFolder
from trainer.training.yolo import checkpoint_file
from trainer.training.yolo.checkpoint_file import Progress, commit, prepare, remove_stale, restore


@pytest.fixture
def run_dir(tmp_path):
    """Return a run folder with last.pt, best.pt and results.csv."""
    weights = tmp_path / "run" / "weights"
    weights.mkdir(parents=True)
    for name in ("last", "best"):
        with zipfile.ZipFile(weights / f"{name}.pt", "w") as archive:
            archive.writestr("archive/data.pkl", name)
    (tmp_path / "run" / "results.csv").write_text("epoch\n1\n")
    return tmp_path / "run"


def saved(run_dir, epoch=1, *, best=False, **progress):
    members = {"results.csv": run_dir / "results.csv"} | ({"best.pt": run_dir / "weights" / "best.pt"} if best else {})
    how_far = Progress(epoch=epoch, **progress)
    return commit(prepare(run_dir / "weights" / "last.pt", run_dir, how_far, members), how_far)


def path_of(run_dir, event):
    return OutputFolder(run_dir).checkpoint(event.epoch)


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_checkpoint_event_matches_file(run_dir):
    event = saved(run_dir, epoch=7)

    path = run_dir / "checkpoints" / "epoch-00007.pt"
    assert event.bytes == path.stat().st_size
    assert event.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar | {"epoch": 7, "sha256": event.sha256, "bytes": event.bytes} == sidecar


def test_added_members_do_not_change_training_state(run_dir):
    event = saved(run_dir, best=True)

    with zipfile.ZipFile(path_of(run_dir, event)) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/data.pkl") == b"last"
        ours = {"archive/run/checkpoint.json", "archive/run/results.csv", "archive/run/best.pt"}
        assert set(archive.namelist()) == {"archive/data.pkl"} | ours


def test_two_newest_checkpoints_are_kept(run_dir):
    for epoch in (1, 2, 3, 4):
        saved(run_dir, epoch)
        time.sleep(0.01)

    assert names(run_dir) == ["epoch-00003.json", "epoch-00003.pt", "epoch-00004.json", "epoch-00004.pt"]


def test_last_written_checkpoints_are_kept_after_restart(run_dir):
    saved(run_dir, 50)
    time.sleep(0.01)
    saved(run_dir, 1)
    time.sleep(0.01)
    saved(run_dir, 2)

    assert "epoch-00050.pt" not in names(run_dir)


def test_checkpoint_restores_progress_results_and_weights_in_other_folder(run_dir, tmp_path):
    event = saved(run_dir, 3, best=True, done=0.25, best_epoch=2, train_seconds=12.5)
    progress = restore(path_of(run_dir, event), tmp_path / "elsewhere")

    assert progress == Progress(epoch=3, done=0.25, best_epoch=2, train_seconds=12.5)
    elsewhere = tmp_path / "elsewhere"
    assert (elsewhere / "results.csv").read_text() == "epoch\n1\n"
    assert (elsewhere / "weights" / "best.pt").read_bytes() == (run_dir / "weights" / "best.pt").read_bytes()
    assert zipfile.ZipFile(elsewhere / "weights" / "last.pt").read("archive/data.pkl") == b"last"


def test_checkpoint_without_best_pt_is_restored_as_best_and_last(run_dir, tmp_path):
    event = saved(run_dir)
    restore(path_of(run_dir, event), tmp_path / "elsewhere")

    assert zipfile.ZipFile(tmp_path / "elsewhere" / "weights" / "best.pt").read("archive/data.pkl") == b"last"


def test_restore_replaces_files_of_killed_attempt(run_dir):
    """A training writes the row of an epoch to results.csv before it saves the checkpoint of the epoch.

    If an attempt is killed between these two steps, the next attempt trains the epoch again and writes the row again.
    """
    event = saved(run_dir)
    (run_dir / "results.csv").write_text("epoch\n1\n2\n")
    restore(path_of(run_dir, event), run_dir)

    assert (run_dir / "results.csv").read_text() == "epoch\n1\n"


def test_restore_writes_args_yaml(run_dir, tmp_path):
    (run_dir / "args.yaml").write_text("epochs: 3\n")
    members = {name: run_dir / name for name in ("results.csv", "args.yaml")}
    event = commit(prepare(run_dir / "weights" / "last.pt", run_dir, Progress(epoch=1), members), Progress(epoch=1))
    restore(path_of(run_dir, event), tmp_path / "elsewhere")

    assert (tmp_path / "elsewhere" / "args.yaml").read_text() == "epochs: 3\n"


@pytest.mark.parametrize(
    ("lines", "restored"), [("epoch\n1\n2", "epoch\n1\n"), ("epoch", None), ("", None), ("epoch\n", "epoch\n")]
)
def test_truncated_row_of_results_is_not_restored(run_dir, tmp_path, lines, restored):
    (run_dir / "results.csv").write_text(lines)
    event = saved(run_dir)
    restore(path_of(run_dir, event), tmp_path / "elsewhere")

    results = tmp_path / "elsewhere" / "results.csv"
    assert (results.read_text() if results.exists() else None) == restored


def test_restore_of_checkpoint_without_results_removes_stale_results(run_dir):
    event = commit(prepare(run_dir / "weights" / "last.pt", run_dir, Progress(epoch=1), {}), Progress(epoch=1))
    restore(path_of(run_dir, event), run_dir)

    assert not (run_dir / "results.csv").exists()


def test_checkpoint_without_added_members_is_accepted(run_dir, tmp_path):
    assert restore(run_dir / "weights" / "last.pt", tmp_path / "elsewhere") == Progress()


def test_previous_checkpoint_stays_after_failed_copy(run_dir, monkeypatch):
    saved(run_dir, 1)
    before = names(run_dir)

    def full(_archive, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_file.zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space"):
        saved(run_dir, 2)

    assert names(run_dir) == before


def test_open_file_keeps_its_content_if_checkpoint_is_replaced(run_dir):
    """The service uploads a checkpoint while the training saves the next one."""
    event = saved(run_dir, 2)
    with path_of(run_dir, event).open("rb") as uploading:
        saved(run_dir, 2, done=0.5)

        assert hashlib.sha256(uploading.read()).hexdigest() == event.sha256


def test_remove_stale_removes_checkpoints_and_weights(run_dir):
    saved(run_dir)
    remove_stale(run_dir)

    assert not list(run_dir.glob("*/*"))
    assert (run_dir / "results.csv").exists()  # Ultralytics deletes results.csv when the training starts
