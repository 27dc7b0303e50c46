"""All errors that the service raises, and their effect on the run.

    TrainerError
    ├── BadRequest        the request is not valid: the run fails immediately and is never retried
    │   ├── Conflict          the request conflicts with the current state of a run
    │   ├── DatasetError      the dataset is not valid
    │   └── ObjectMissing     a stored object does not exist
    ├── RunFailed         the training failed: the run fails with a diagnosis and is never retried
    ├── MachineFailed     the attempt failed because of the host: the run is requeued while attempts remain
    │   ├── HostFailed        the next run would fail, too: counts as a host failure of the worker
    │   ├── HostSuspected     the same, but a run can cause it: counts only if a test of the worker confirms it
    │   └── HostUnfit         the host does not meet the requirements of the run, but can execute other runs
    ├── Unavailable       a remote service does not answer: the caller retries later
    └── Misconfigured     a setting, a file or the access to a service is wrong: the operator has to fix it
        └── Refused           the queue does not store a value of the call; it may accept the call without the value

`Stopped` (core/stop.py) is control flow and not an error, so it is not part of the tree.

The message of an error is a sentence that tells the user how to fix the problem.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

# error codes of a broken disk or mount
BROKEN_DISK = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.EUCLEAN, errno.EREMOTEIO})
# error codes of limits: disk space, processes, memory, open files
EXHAUSTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


class TrainerError(Exception):
    """The base class of all errors. Never raised directly."""


class BadRequest(TrainerError):
    """The request is not valid. `problems` lists all problems."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class Conflict(BadRequest):
    """The call conflicts with the state of a run: its ID belongs to another request, or a worker holds its lease."""


class DatasetError(BadRequest):
    """The dataset cannot be used for a training."""


class ObjectMissing(BadRequest):
    """A bucket or an object does not exist, or the key has no access to it."""


class RunFailed(TrainerError):
    """The training failed, and another attempt would fail for the same reason."""


class MachineFailed(TrainerError):
    """The attempt failed because of the host (killed process, no memory, missing file). Another attempt may succeed."""


class HostFailed(MachineFailed):
    """The host cannot execute any run: a broken or read-only disk, or a process that cannot be started.

    Never raised for errors that a run can cause or report falsely.
    """


class HostSuspected(MachineFailed):
    """The training process reports a broken GPU, driver, disk or installation, or it cannot be killed in time.

    Also raised for a broken folder of a dataset. The code in a training process can print any message and start very many
    processes, and a row can name any folder. So the worker tests its host.
    """


class HostUnfit(MachineFailed):
    """This host does not meet the requirements of the run: too little disk space, or a folder that is not mounted.

    Another host, or this host at a later time, may meet the requirements. This host can still execute other runs.
    """


def disk_failed(error: OSError, message: str) -> MachineFailed:
    """Return the error for a failed disk operation: `HostFailed` for a broken disk, else `MachineFailed`.

    A full disk does not count as broken, because this run may have filled it. The self-test checks the free space.
    """
    return (HostFailed if error.errno in BROKEN_DISK else MachineFailed)(message)


def host_failed(error: OSError, message: str) -> MachineFailed:
    """Return the error for a failed operation of the service: `HostSuspected` for a limit that a run can reach."""
    return (HostSuspected if error.errno in EXHAUSTED else HostFailed)(message)


@contextmanager
def disk_errors(describe: Callable[[OSError], str]) -> Iterator[None]:
    """Replace an OSError in the block with the error from `disk_failed`, with the message `describe(error)`."""
    try:
        yield
    except OSError as error:
        raise disk_failed(error, describe(error)) from error


def raise_if_disk_is_broken(error: Exception, what: str) -> None:
    """Raise `HostSuspected` if `error` shows a broken disk. `what` is the file or folder of a dataset."""
    if isinstance(error, OSError) and error.errno in BROKEN_DISK:
        raise HostSuspected(
            f"{what} cannot be read ({error.strerror}): check dmesg and the mounts of this host."
        ) from error


class Unavailable(TrainerError):
    """A remote service cannot be reached or is overloaded.

    `retry_after` is the Retry-After of the server in seconds, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Misconfigured(TrainerError):
    """The operator has to fix a setting, a file or the access to a remote service (key, migration, bucket)."""


class Refused(Misconfigured):
    """The queue does not store a value of the call: a column cannot contain it, or a rule of the app rejects it.

    This is no outage, because the queue answers other calls.
    """
