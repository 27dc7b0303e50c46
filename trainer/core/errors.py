"""Every error that the service raises on purpose, and what each one means for the run.

    TrainerError
    ├── BadRequest        the request cannot be served: failed at once, never retried
    │   ├── Conflict          … now: it contradicts the present state of a run
    │   ├── DatasetError      … because of its dataset
    │   └── ObjectMissing     … because a stored object is not there
    ├── RunFailed         the training failed: failed with a diagnosis, never retried
    ├── MachineFailed     this machine failed the run: queued again while attempts remain
    │   ├── HostFailed        … and would fail the next run, too: counts against the worker
    │   └── HostUnfit         … because it lacks what this run needs: one lost attempt per worker
    ├── Unavailable       a remote service does not answer: the caller retries later
    └── Misconfigured     a remote service refuses us: the operator has to fix something

`Stopped` (core/stop.py) is control flow and not an error, so it is not part of the tree.

A message is a sentence that tells the author of the run what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

# errors that only a broken disk or mount returns, for any operation
BROKEN_DISK = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.EUCLEAN, errno.EREMOTEIO})


class TrainerError(Exception):
    """Base class; never raised itself."""


class BadRequest(TrainerError):
    """The request cannot be served; `problems` lists everything that is wrong."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class Conflict(BadRequest):
    """The call contradicts the state of a run: the id is taken by another request, or a worker holds its lease."""


class DatasetError(BadRequest):
    """The dataset cannot be trained on."""


class ObjectMissing(BadRequest):
    """A bucket or an object does not exist, or the key has no access to it."""


class RunFailed(TrainerError):
    """The training failed, and another attempt would fail for the same reason."""


class MachineFailed(TrainerError):
    """The machine failed the run (killed, out of memory, a file gone); another attempt may succeed."""


class HostFailed(MachineFailed):
    """The host cannot work on any run: a broken or read-only disk, a missing driver, libraries that cannot be imported.

    Never raised for what a run's own size, dataset or model can cause.
    """


class HostUnfit(MachineFailed):
    """This host lacks what the run needs: space on a disk, or a folder that is not mounted here.

    Another host may have it, and this host later. Runs that need less can be worked on.
    """


def disk_failed(error: OSError, message: str) -> MachineFailed:
    """Return the error for a failed disk operation: `HostFailed` for a broken disk, else `MachineFailed`.

    A disk may be full because of the size of this run. The self-test shows whether it is too full for the next run.
    """
    return (HostFailed if error.errno in BROKEN_DISK else MachineFailed)(message)


@contextmanager
def disk_errors(describe: Callable[[OSError], str]) -> Iterator[None]:
    """Turn an OSError of the block into the error of `disk_failed`, with the message `describe(error)`."""
    try:
        yield
    except OSError as error:
        raise disk_failed(error, describe(error)) from error


def raise_if_disk_is_broken(error: Exception, what: str) -> None:
    """Raise `HostFailed` when `what` cannot be read because of a broken disk: the dataset is not at fault."""
    if isinstance(error, OSError) and error.errno in BROKEN_DISK:
        raise HostFailed(
            f"{what} cannot be read ({error.strerror}): check dmesg and the mounts of this host."
        ) from error


class Unavailable(TrainerError):
    """A remote service cannot be reached or is overloaded.

    `retry_after` is the wait that the server asked for, in seconds, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Misconfigured(TrainerError):
    """A remote service refuses the request: wrong URL, wrong key, missing migration, missing bucket."""
