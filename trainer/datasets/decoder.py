"""The jobs that read untrusted files, and where they are executed.

A job (`Job`) extracts an archive, parses a YAML or checks a dataset. The service executes each job in a confined
process (confined/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from trainer.core.errors import MachineFailed
from trainer.core.stop import StopSignal
from trainer.core.text import printable

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Access:
    """The paths that a job uses.

    The names in `names` can be listed. In `fill`, only regular files and folders can be created; in `write`, also links.
    """

    read: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    fill: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Room:
    """The disk that a job fills. Both functions raise `HostUnfit` if the disk is too full.

    `make` is called at most once, with the number of bytes that the job will write. `check` is called regularly.
    """

    make: Callable[[int], object] = lambda _: None
    check: Callable[[], object] = lambda: None


ENOUGH_ROOM = Room()


@dataclass(frozen=True, kw_only=True)
class Done:
    """The result of a job that only writes files."""


class Job(Protocol[R_co]):
    """A job is a frozen dataclass. Its fields are text, numbers, None, and lists and mappings of these values.

    The folders and files in `Access.fill` and `Access.write` exist before the job starts.
    """

    @property
    def access(self) -> Access:
        """The paths that `run` uses."""

    def run(self, stop: StopSignal, room: Room) -> R_co:
        """Do the work and return the result, a dataclass. Raises `DatasetError`, `MachineFailed` or `Stopped`."""


class Decoder(Protocol):
    """Executes a job and returns its result. Raises the errors of the job."""

    def __call__(self, job: Job[R_co], stop: StopSignal, room: Room = ENOUGH_ROOM) -> R_co: ...


@contextmanager
def answers_checked() -> Iterator[None]:
    """Turn the exceptions that an invalid answer of a job causes into `MachineFailed`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, FileExistsError) as error:
        raise invalid_answer(error) from error


def invalid_answer(problem: object) -> MachineFailed:
    """Return the error about an answer that no job gives."""
    return MachineFailed(f"The process that reads the dataset sent an invalid answer: {printable(str(problem), 200)}.")


def here(job: Job[R_co], stop: StopSignal, room: Room = ENOUGH_ROOM) -> R_co:
    """Execute a job in this process, for tests."""
    return job.run(stop, room)
