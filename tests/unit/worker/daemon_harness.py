"""A daemon that executes the runs in the queue of a `WorkerFixture`."""

from contextlib import contextmanager
from functools import partial

from tests.unit.worker.harness import in_background, raising
from trainer.core.ports import Worker
from trainer.core.stop import StopReason
from trainer.request.parse import plan_of
from trainer.worker.claiming import Claimer
from trainer.worker.daemon import Daemon
from trainer.worker.housekeeping import Housekeeping
from trainer.worker.liveness import Liveness
from trainer.worker.orphaned_journals import orphaned_journals
from trainer.worker.prefetch import Prefetcher
from trainer.worker.recovery import OrphanDelivery


class RecordingQueue:
    """The queue of `worker`. It records claim IDs and calls `before` and `after` around each claim."""

    def __init__(self, worker):
        self.worker = worker
        self.claims = []
        self.before = self.after = raising()

    def __getattr__(self, name):
        return getattr(self.worker.queue, name)

    def claim(self, worker, claim_id, lease_seconds):
        self.claims.append(claim_id)
        self.before()
        lease = self.worker.queue.claim(worker, claim_id, lease_seconds)
        self.after()
        return lease


def daemon(worker, queue, execution=None, recovery=None, manager=None, check=lambda: (), **parts):
    def describe(free):
        return Worker(id="w", capabilities={"gpus": free})

    claimer = Claimer(
        queue, worker.health, describe_worker=describe, check=check, poll_seconds=0.05, lease_seconds=60,
    )  # fmt: skip
    prefetcher = Prefetcher(
        queue=queue, datasets=worker.datasets, parse=plan_of, slots=worker.slots, describe_worker=describe,
        interval=0.05,
    )  # fmt: skip
    orphans = partial(orphaned_journals, worker.folders.journals, "w", 60)
    defaults = {
        "claimer": claimer,
        "execution": execution or worker.execution(queue=queue),
        "orphans": OrphanDelivery(queue, orphans, recovery or worker.recovery(queue=queue)),
        "slots": worker.slots,
        "prefetcher": prefetcher,
        "health": worker.health,
        "housekeeping": Housekeeping([]),
        "drain_seconds": 5,
        "manager": manager or Manager(),
        "liveness": Liveness(),
    }  # fmt: skip
    return Daemon(**(defaults | parts))


class Manager:
    """A service manager that records the statuses it receives."""

    def __init__(self):
        self.statuses = []

    def ready_and(self, status):
        self.statuses.append(status)

    def stopping(self):
        pass


@contextmanager
def serving(worker, queue, **parts):
    """Run a daemon during the block. Stop the daemon at the end of the block, even if the test fails."""
    with in_background(lambda: daemon(worker, queue, **parts).run(worker.shutdown)):
        try:
            yield
        finally:
            worker.shutdown.set(StopReason.SHUTDOWN)
