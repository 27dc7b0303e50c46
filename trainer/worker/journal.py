"""The journal of an attempt: its events and its outcome on local disk, so that an outage or a crash does not lose them.

Each attempt has one append-only file. The process that executes the run locks the file. If the file has no lock, its
process crashed, and the next process delivers the content (orphaned_journals.py). The lines of the file:

    {"lease": …}      the first line: the run, the attempt, the fencing token, and the owner and creation of the row
    {"event": …}      an event of the run
    {"delivered": n}  the queue has received every event up to n, except the dropped events
    {"dropped": n}    the queue refused event n
    {"recovery": n}   the nth recovery of the run by a later process starts
    {"outcome": …}    the outcome; the file is removed after the delivery
"""

from __future__ import annotations

import errno
import fcntl
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import structlog
from pydantic import TypeAdapter

from trainer.core.errors import host_failed
from trainer.core.job import JsonObject, Lease, Outcome, RunEvent
from trainer.disk import durable

log = structlog.get_logger()

OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
NEW = ".new"  # the suffix of a journal that is being created


class Journal:
    """The journal of one attempt. Thread-safe.

    If the disk cannot be written, the run continues and its events are delivered from memory. A crash then loses them.
    New events get sequence numbers after `last_seq`.
    """

    def __init__(
        self,
        file: FileIO | None,
        path: Path,
        lease: Lease,
        *,
        pending: Sequence[RunEvent] = (),
        last_seq: int = 0,
        outcome: Outcome | None = None,
        recoveries: int = 0,
    ) -> None:
        self.path = path
        self.lease = lease
        self.outcome = outcome
        self.recoveries = recoveries  # number of recoveries that were started
        self.dropped: list[RunEvent] = []  # events that the queue refused
        self._file = file
        self._lock = threading.Lock()
        self._pending = list(pending)
        self._next = last_seq + 1
        self._disk_error: OSError | None = None

    @classmethod
    def create(cls, folder: Path, lease: Lease) -> Journal:
        """Return a new journal for a lease. If the disk cannot be written, the journal exists only in memory."""
        path = folder / f"{lease.job.id}.{lease.job.attempt}.jsonl"
        # locked before it gets its final name, because other processes treat an unlocked journal as orphaned
        unnamed = path.with_suffix(NEW)
        job = lease.job
        held = {"run_id": job.id, "attempt": job.attempt, "claim_id": lease.claim_id}
        held |= {"created_by": job.created_by, "created_at": job.created_at}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = unnamed.open("ab", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal = cls(file, path, lease)
            journal._append({"lease": held})
            unnamed.rename(path)
        except OSError as error:
            journal = cls(None, path, lease)
            journal._note_disk(error)
        return journal

    def require_disk(self) -> None:
        """Raise MachineFailed if the journal cannot be written, because a crash would lose the events and the outcome."""
        if error := self._disk_error:
            raise host_failed(error, f"The journal of the run cannot be written in {self.path.parent}: {error}.")

    def record(self, kind: str, data: JsonObject) -> None:
        """Add an event of the run."""
        with self._lock:
            event = RunEvent(seq=self._next, at=datetime.now(UTC).isoformat(), kind=kind, data=data)
            self._next += 1
            self._pending.append(event)
            self._append({"event": asdict(event)})

    def pending(self, limit: int = 200) -> list[RunEvent]:
        """Return at most `limit` events that the queue has not confirmed, oldest first."""
        with self._lock:
            return self._pending[:limit]

    def delivered(self, events: list[RunEvent]) -> None:
        """Mark these events as delivered."""
        if not events:
            return
        with self._lock:
            last = events[-1].seq
            self._pending = [event for event in self._pending if event.seq > last]
            self._append({"delivered": last})

    def drop(self, event: RunEvent) -> bool:
        """Remove an event that the queue refuses. Return False if the event was delivered or dropped before."""
        with self._lock:
            kept = [waiting for waiting in self._pending if waiting.seq != event.seq]
            if len(kept) == len(self._pending):
                return False
            self._pending = kept
            self.dropped.append(event)
            self._append({"dropped": event.seq})
            return True

    def begin_recovery(self) -> None:
        """Increase the number of recoveries, and write it to the file, so that it survives a crash of this process."""
        with self._lock:
            self.recoveries += 1
            self._append({"recovery": self.recoveries})

    def end(self, outcome: Outcome) -> None:
        """Write the outcome of the attempt and sync it to disk. After this call only the delivery remains."""
        with self._lock:
            self.outcome = outcome
            self._append({"outcome": OUTCOME.dump_python(outcome, mode="json")}, sync=True)

    def close(self) -> None:
        """Close the file. Later lines, for example from a last heartbeat, are not written."""
        with self._lock:
            if self._file:
                self._file.close()

    def discard(self) -> None:
        """Remove and close the journal. Call this method when the outcome is delivered or the lease is lost."""
        try:
            if self._file:
                self.path.unlink(missing_ok=True)
        except OSError as error:  # the next process delivers the outcome again, which has no effect
            log.warning("journal of an ended run cannot be removed", path=str(self.path), error=str(error))
        self.close()

    def _append(self, line: JsonObject, *, sync: bool = False) -> None:
        if self._file is None or self._file.closed:
            return
        text = json.dumps(line).encode() + b"\n"
        try:
            # after a failed write the last line may be incomplete, so the new text starts on a new line
            written = self._file.write(b"\n" + text if self._disk_error else text)
            if sync:
                durable.sync(self.path)
                durable.sync(self.path.parent)  # the file name is stored in the folder
        except OSError as error:
            self._note_disk(error)
        else:
            if written < len(text):
                self._note_disk(OSError(errno.ENOSPC, "no space left"))

    def _note_disk(self, error: OSError) -> None:
        if not self._disk_error:
            log.error("journal cannot be written, a crash now would lose events", path=str(self.path), error=str(error))
        self._disk_error = error
