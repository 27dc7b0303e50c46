"""What has to survive an outage or a crash of this process: the run's events and its ending, on local disk.

One append-only file per attempt, locked by the process that works on it. A file that nobody holds is what a
process left behind when it died; the next one delivers it (leftovers.py). Its lines:

    {"lease": …}      first: whose run, under which claim
    {"event": …}      something happened
    {"delivered": n}  the queue has every event up to n
    {"recovery": n}   a later process begins to end the attempt for the nth time
    {"ending": …}     how it ended; the file is removed once that is delivered
"""

from __future__ import annotations

import fcntl
import json
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import structlog
from pydantic import TypeAdapter

from trainer.core.errors import HostFailed
from trainer.core.job import JsonObject, Lease, Outcome, RunEvent
from trainer.disk import durable

log = structlog.get_logger()

OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
NEW = ".new"  # the suffix of a journal that is being created


class Journal:
    """The journal of one attempt. Safe between threads.

    A disk that cannot be written costs the protection against a crash, never the run: the lines stay in memory and
    are delivered from there.
    """

    def __init__(self, file: FileIO | None, path: Path, lease: Lease) -> None:
        self.path = path
        self.lease = lease
        self.ending: Outcome | None = None
        self.recoveries = 0  # begun by processes before this one, and by this one
        self._file = file
        self._lock = threading.Lock()
        self._pending: list[RunEvent] = []
        self._next = 1
        self._disk_error: str | None = None

    @classmethod
    def create(cls, folder: Path, lease: Lease) -> Journal:
        """A new journal for a lease that was just claimed. Without a disk that can be written it is in memory only."""
        path = folder / f"{lease.job.id}.{lease.job.attempt}.jsonl"
        # another service may look for leftovers now: a journal has its name only once it is locked and says whose it is
        unnamed = path.with_suffix(NEW)
        held = {"run_id": lease.job.id, "attempt": lease.job.attempt, "claim_id": lease.claim_id}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = unnamed.open("ab", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal = cls(file, path, lease)
            journal._append({"lease": held})
            unnamed.rename(path)
        except OSError as error:
            journal = cls(None, path, lease)
            journal._note_disk(str(error))
        return journal

    @classmethod
    def reopened(
        cls,
        file: FileIO,
        path: Path,
        lease: Lease,
        *,
        pending: list[RunEvent],
        last_seq: int,
        ending: Outcome | None,
        recoveries: int,
    ) -> Journal:
        """The journal of a process that is gone. New events are numbered after `last_seq`."""
        journal = cls(file, path, lease)
        journal._pending = pending
        journal._next = last_seq + 1
        journal.ending = ending
        journal.recoveries = recoveries
        return journal

    def require_disk(self) -> None:
        """Raise HostFailed when nothing can be written down: the next crash would lose the history and the ending."""
        if self._disk_error:
            raise HostFailed(f"The journal of the run cannot be written below {self.path.parent}: {self._disk_error}.")

    def record(self, kind: str, data: JsonObject) -> None:
        """Add an event to the history."""
        with self._lock:
            event = RunEvent(seq=self._next, at=datetime.now(UTC).isoformat(), kind=kind, data=data)
            self._next += 1
            self._pending.append(event)
            self._append({"event": asdict(event)})

    def pending(self, limit: int = 200) -> list[RunEvent]:
        """The oldest events that the queue has not confirmed."""
        with self._lock:
            return self._pending[:limit]

    def delivered(self, events: list[RunEvent]) -> None:
        """The queue has these."""
        if not events:
            return
        with self._lock:
            last = events[-1].seq
            self._pending = [event for event in self._pending if event.seq > last]
            self._append({"delivered": last})

    def begin_recovery(self) -> None:
        """Count an attempt to recover the run, also for the next process if this one dies of it."""
        with self._lock:
            self.recoveries += 1
            self._append({"recovery": self.recoveries})

    def end(self, outcome: Outcome) -> None:
        """The attempt is over; from here on only the delivery is left. Forced to disk before it returns."""
        with self._lock:
            self.ending = outcome
            self._append({"ending": OUTCOME.dump_python(outcome, mode="json")}, sync=True)

    def close(self) -> None:
        """What comes after it, such as the answer to a last beat, is not written any more."""
        with self._lock:
            if self._file:
                self._file.close()

    def discard(self) -> None:
        """Everything was delivered, or is nobody's business any more."""
        try:
            if self._file:
                self.path.unlink(missing_ok=True)
        except OSError as error:  # the next process delivers it once more, which changes nothing
            log.warning("the journal of an ended run cannot be removed", path=str(self.path), error=str(error))
        self.close()

    def _append(self, line: JsonObject, *, sync: bool = False) -> None:
        if self._file is None or self._file.closed:
            return
        text = json.dumps(line).encode() + b"\n"
        try:
            # after a failed write the last line may be torn: begin on a new one
            written = self._file.write(b"\n" + text if self._disk_error else text)
            if sync:
                durable.sync(self.path)
                durable.sync(self.path.parent)  # its name
        except OSError as error:
            self._note_disk(str(error))
        else:
            if written < len(text):
                self._note_disk("no space left")

    def _note_disk(self, error: str) -> None:
        if not self._disk_error:
            log.error("the journal cannot be written; a crash now would lose events", path=str(self.path), error=error)
        self._disk_error = error
