"""Every error that the service raises on purpose, and what each one means for the run.

    TrainerError
    ├── BadRequest        the row asks for the impossible: failed at once, never retried
    │   ├── Conflict          … now: it contradicts the present state of a run
    │   ├── DatasetError      … because of its dataset
    │   └── ObjectMissing     … because a stored object is not there
    ├── RunFailed         the training itself failed: failed with a diagnosis, never retried
    ├── MachineFailed     this machine failed it: queued again while attempts remain
    │   ├── HostFailed        … for a reason that the next run would meet as well: counts against the worker
    │   └── HostUnfit         … because it lacks what this run needs: costs the run one attempt per worker
    ├── Unavailable       a remote service does not answer now: the caller retries later
    ├── Misconfigured     a remote service refuses us: the operator has to mend something
    └── LeaseLost         another worker owns the run: write nothing more

`Stopped` (core/stop.py) is control flow, not an error, and not part of the tree.

A message is one sentence that the person who inserted the row can act on.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

# what only a disk or a mount that is broken answers, whatever was asked of it
BROKEN_DISK = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.EUCLEAN, errno.EREMOTEIO})


class TrainerError(Exception):
    """Base of the tree; never raised itself."""


class BadRequest(TrainerError):
    """The request cannot be served; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class Conflict(BadRequest):
    """The call contradicts the state of a run: the id is taken by another request, or a worker holds the run."""


class DatasetError(BadRequest):
    """The dataset cannot be trained on."""


class ObjectMissing(BadRequest):
    """A bucket or an object does not exist, or this key may not see it."""


class RunFailed(TrainerError):
    """The training failed for a reason that another attempt would meet again."""


class MachineFailed(TrainerError):
    """The machine failed the run (killed, out of memory, a file gone); another attempt may succeed."""


class HostFailed(MachineFailed):
    """The host cannot work on any run: disk read-only or broken, driver gone, libraries that cannot be imported.

    Never raised for what a run's own size, dataset or model can cause.
    """


class HostUnfit(MachineFailed):
    """This host lacks what the run needs: room on a disk, a folder that is not mounted here.

    Another host may have it, and so may this one later; a run that needs less can be worked on.
    """


def disk_failed(error: OSError, message: str) -> MachineFailed:
    """Return the error of a failed disk operation: `HostFailed` for a broken disk.

    A full disk can be full because of this run's size, so it is `MachineFailed`; a self-test finds out whether the
    next run would meet it, too.
    """
    return (HostFailed if error.errno in BROKEN_DISK else MachineFailed)(message)


def raise_if_disk_is_broken(error: Exception, what: str) -> None:
    """Raise `HostFailed` when `what` could not be read because of a broken disk, which is no fault of the dataset."""
    if isinstance(error, OSError) and error.errno in BROKEN_DISK:
        raise HostFailed(
            f"{what} cannot be read ({error.strerror}): look at dmesg and the mounts of this host."
        ) from error


class Unavailable(TrainerError):
    """A remote service cannot be reached or is overloaded.

    `retry_after` is the wait that the server asked for, in seconds, if it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Misconfigured(TrainerError):
    """A remote service answers, and refuses: wrong URL, wrong key, migration missing, bucket missing."""


class LeaseLost(TrainerError):
    """The run belongs to somebody else now; nothing may be written for it any more."""
