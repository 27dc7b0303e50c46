"""Helper functions that upload the artifacts of a run folder, and a store that records uploads."""

from tests.unit.worker.fakes import described
from trainer.core.events import Finished
from trainer.core.job import Job, RunRequest
from trainer.core.run_folder import RunFolder
from trainer.core.stop import StopSignal
from trainer.worker.artifact_upload import ArtifactUpload

JOB = Job(id="r", request=RunRequest(data_yaml="x"), attempt=2)


def published(store, run_dir, events=None, stop=None, uploader=None, finished=None):
    events = [] if events is None else events
    uploader = uploader or ArtifactUpload(store, "b", JOB)
    return uploader.upload(
        RunFolder(run_dir.parent), run_dir.parent / "run.log", stop or StopSignal(), events.append, finished
    )


class Watched:
    """A store that records the names of uploaded files. `refuse` can raise an error for a file."""

    def __init__(self, store):
        self.store = store
        self.uploaded = []
        self.refuse = lambda name: None

    def __getattr__(self, name):
        return getattr(self.store, name)

    def upload(self, path, ref, stop, **more):
        name = ref.key.rpartition("/")[2]
        self.refuse(name)
        self.uploaded.append(name)
        return self.store.upload(path, ref, stop, **more)


def finished_with(run_dir):
    best, last = (described(run_dir / "weights" / name) for name in ("best.pt", "last.pt"))
    return Finished(best=best, last=last, report={})
