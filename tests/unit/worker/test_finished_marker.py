"""The finished marker: the file that records a finished training, with its weights and its report."""

from trainer.core.events import Finished, WeightsFile
from trainer.core.job import RunRequest
from trainer.core.run_folder import RunFolder
from trainer.disk import durable
from trainer.request.parse import plan_of
from trainer.worker import finished_marker


def test_weights_are_on_disk_before_marker_exists(tmp_path, monkeypatch):
    """After a power cut, a marker must not name weights whose content is lost."""
    folder = RunFolder(tmp_path / "train_1")
    folder.output.weights.mkdir(parents=True)
    for path in (folder.output.best, folder.output.last):
        path.write_bytes(b"weights")
    synced = []

    def sync_below(path):
        synced.append((path, sorted(found.name for found in path.rglob("*")), folder.finished_marker.exists()))

    monkeypatch.setattr(durable, "sync_below", sync_below)
    weights = WeightsFile(sha256="0" * 64, bytes=7)
    finished_marker.write(folder, Finished(best=weights, last=weights, report={}))

    assert synced == [(folder.path, ["best.pt", "last.pt", "output", "weights"], False)]
    assert folder.finished_marker.exists()


def test_epochs_are_read_if_the_split_lists_file_names(tmp_path):
    """A recorded plan has a digest of the split instead of the file names."""
    configuration = {"epochs": 2, "split": {"splits": {"a.jpg": "train", "b.jpg": "val"}}}
    plan = plan_of(RunRequest(data_yaml="/data/x", configuration=configuration))
    folder = RunFolder(tmp_path)
    folder.output.path.mkdir()
    folder.output.results.write_text("epoch,time,train/box_loss\n1,2.5,0.9\n2,5.0,0.8\n")
    weights = WeightsFile(sha256="0" * 64, bytes=7)

    found = finished_marker.epochs_after(
        1, folder, Finished(best=weights, last=weights, report={"plan": plan.recorded()})
    )

    assert [(event.epoch, event.metrics) for event in found] == [(2, {"train/box_loss": 0.8})]
