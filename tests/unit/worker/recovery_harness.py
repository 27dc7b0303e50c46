"""Runs whose process was killed, and their recovery."""

from tests.unit.worker.harness import CLAIM
from trainer.worker.journal import Journal

TRAINED = {"last.pt", "results.csv", "run.log", "manifest.json"}


def killed(worker, lease=None):
    """Return the id and the training folder of a run whose process was killed in the second epoch."""
    run_id = lease.job.id if lease else worker.enqueue()
    lease = lease or worker.claim(CLAIM)
    journal = Journal.create(worker.folders.journals, lease)
    journal.record("epoch", {"epoch": 1})
    journal.close()
    worker.folders.create(lease.job)
    folder = worker.folders.folder(lease.job)
    run_dir = folder.output.path
    (run_dir / "weights").mkdir(parents=True)
    (run_dir / "weights" / "last.pt").write_bytes(b"last of 1")
    (run_dir / "results.csv").write_text("epoch\n1\n")
    folder.log.write_text("training started\n")
    return run_id, run_dir


def recover(worker, queue=None, stop=None, **parts):
    queue = queue or worker.queue
    worker.deliver_orphans(worker.recovery(queue=queue, **parts), queue, stop)


class Watched:
    """A store or queue that calls `before` at the start of each method in `names`."""

    def __init__(self, watched, before, *names):
        self.watched, self.before, self.names = watched, before, names

    def __getattr__(self, name):
        found = getattr(self.watched, name)
        if name not in self.names:
            return found

        def call(*arguments, **more):
            self.before(*arguments)
            return found(*arguments, **more)

        return call
