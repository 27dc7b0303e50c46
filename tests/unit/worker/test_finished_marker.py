"""The marker of a finished training."""

from trainer.core.events import Finished, WeightsFile
from trainer.core.run_folder import RunFolder
from trainer.disk import durable
from trainer.worker import finished_marker


def test_weights_are_on_disk_before_marker_exists(tmp_path, monkeypatch):
    """After a power cut, a marker must not name weights whose content is lost."""
    folder = RunFolder(tmp_path / "train_1")
    folder.weights.mkdir(parents=True)
    for path in (folder.best, folder.last):
        path.write_bytes(b"weights")
    synced = []

    def sync_below(path):
        synced.append((path, sorted(found.name for found in path.rglob("*")), folder.finished_marker.exists()))

    monkeypatch.setattr(durable, "sync_below", sync_below)
    best, last = (WeightsFile(path=str(path), sha256="0" * 64, bytes=7) for path in (folder.best, folder.last))
    finished_marker.write(folder, Finished(best=best, last=last, report={}))

    assert synced == [(folder.path, ["best.pt", "last.pt", "weights"], False)]
    assert folder.finished_marker.exists()
