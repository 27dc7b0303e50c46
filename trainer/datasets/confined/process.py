"""Executes jobs in confined processes, so that a hostile dataset can neither fill the memory of the service nor use it.

Each job has its own process (main.py), which reads only the files of the job and has no network. The service keeps what
needs the network, the caches and the keys.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import structlog
from pydantic import TypeAdapter

from trainer.core.errors import DatasetError, MachineFailed
from trainer.core.stop import StopSignal
from trainer.core.text import printable
from trainer.datasets.confined import protocol
from trainer.datasets.confined.limits import CPU_SECONDS, MEMORY
from trainer.datasets.confined.registry import JOBS
from trainer.datasets.confined.watch import Watch
from trainer.datasets.decoder import ENOUGH_ROOM, Job, R_co, Room, answers_checked, invalid_answer
from trainer.datasets.inspection import Inspect

log = structlog.get_logger()

TICK_SECONDS = 0.1  # between two checks of the stop signal and the free space
KILL_SECONDS = 5.0  # time for SIGKILL to take effect; a process that waits for a broken disk takes longer
_CHUNK = 1 << 16  # bytes; as much as a pipe holds
_LOG_BYTES = 4000  # last bytes of stderr, for the log of the service
MOST_OUTPUT = 256 << 20  # bytes of stderr; endless output would keep the service busy
_PROJECT = Path(__file__).parents[3]
_ALLOWED = frozenset({"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONHASHSEED"})


@dataclass(eq=False, kw_only=True)
class ConfinedDecoder:
    """Implements `Decoder` with one process for each job. Safe to use from several threads.

    `environment` is the environment of the service; the process gets only the allowed variables. `sandbox` says what
    happens on a host without the whole sandbox: a job fails there (`required`), or continues without it (`auto`, `0`).
    """

    environment: Mapping[str, str]
    sandbox: Literal["required", "auto", "0"] = "auto"
    program: Sequence[str] = (sys.executable, "-P", "-m", "trainer.datasets.confined.main")
    _prestarted: _Process | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)  # guards _prestarted and _closed
    _closed: bool = field(default=False, init=False)

    def warm(self) -> None:
        """Start a process that imports its packages and waits for the next `Inspect` job, unless one waits already.

        A process that ended while it waited is not replaced: the next job starts a new process and reports its failure.
        """
        with self._lock:
            if self._closed or self._prestarted:
                return
            # if the host cannot start a process, the next job reports that
            with contextlib.suppress(MachineFailed):
                self._prestarted = self._start()

    def close(self) -> None:
        """End the waiting process. No other process is prestarted afterwards."""
        with self._lock:
            self._closed = True
            prestarted, self._prestarted = self._prestarted, None
        if prestarted:
            prestarted.close()

    def __call__(self, job: Job[R_co], stop: StopSignal, room: Room = ENOUGH_ROOM) -> R_co:
        """Execute a job. Raises the errors of the job, `Stopped`, and `MachineFailed` if the process fails."""
        stop.raise_if_set()
        process = self._take() if isinstance(job, Inspect) else self._start()
        try:
            name = type(job).__name__
            arguments: dict[str, Any] = asdict(job)  # type: ignore[call-overload]
            process.send({"job": name, "arguments": arguments, "sandbox": self.sandbox})
            result = process.result(stop, room, (*job.access.fill, *job.access.write))
            with answers_checked():
                value: R_co = TypeAdapter(get_type_hints(JOBS[name].run)["return"]).validate_python(result)
            return value
        finally:
            process.close()

    def _take(self) -> _Process:
        with self._lock:
            prestarted, self._prestarted = self._prestarted, None
        if prestarted and prestarted.is_running:
            return prestarted
        if prestarted:
            prestarted.close()
        return self._start()

    def _start(self) -> _Process:
        return _Process(
            self.program,
            {name: value for name, value in self.environment.items() if name in _ALLOWED}
            | {
                "PYTHONPATH": os.pathsep.join(
                    [str(_PROJECT), *filter(None, self.environment.get("PYTHONPATH", "").split(os.pathsep))]
                ),
                "PYTHONDONTWRITEBYTECODE": "1",
                "OPENBLAS_NUM_THREADS": "1",  # each of its threads reserves address space, which is limited
                "MALLOC_ARENA_MAX": "4",
            },
        )


class _Process:
    """One process: its pipes, and the messages from it."""

    def __init__(self, program: Sequence[str], environment: Mapping[str, str]) -> None:
        try:
            self._process = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise MachineFailed(
                f"The process that reads the dataset cannot be started on this host ({error})."
            ) from error
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._stdin, self._stdout, self._stderr = self._process.stdin, self._process.stdout, self._process.stderr
        os.set_blocking(self._stdin.fileno(), False)
        self._unsent = bytearray()
        self._received = bytearray()
        self._log = bytearray()
        self._output_bytes = 0

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Mapping[str, Any]) -> None:
        """Add a message to the unsent bytes, which `result` sends."""
        self._unsent += protocol.encoded(message)

    def result(self, stop: StopSignal, room: Room, folders: Sequence[str]) -> Any:
        """Wait for the result of the job, which writes to `folders`. Raises the error of the job."""
        is_room_made = is_reported = False
        watch = Watch(self._process.pid, folders)
        while True:
            message = self._next_message(stop, room, watch)
            if "result" in message:
                return message["result"]
            if "error" in message:
                with answers_checked():
                    error = protocol.error_of(message, MEMORY)
                if not isinstance(error, DatasetError):
                    log.warning("process that reads a dataset failed", error=str(error), output=self._output())
                raise error
            if "missing" in message and not is_reported:
                is_reported = True
                log.warning("sandbox for datasets not available", missing=printable(str(message["missing"])))
            elif isinstance(size := message.get("make_room"), int) and size >= 0 and not is_room_made:
                is_room_made = True
                room.make(size)
                self.send({"continue": True})
            else:
                raise invalid_answer("an unknown message")

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()

    def _next_message(self, stop: StopSignal, room: Room, watch: Watch) -> dict[str, Any]:
        with selectors.PollSelector() as ready:  # needs no descriptor, which the service may have no more
            for pipe in (self._stdout, self._stderr):
                ready.register(pipe, selectors.EVENT_READ)
            if self._unsent:
                ready.register(self._stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._received:
                for key, _ in ready.select(TICK_SECONDS):
                    if key.fileobj is self._stdin:
                        self._write(ready)
                    else:
                        self._read(key.fd, ready)
                stop.raise_if_set()
                room.check()
                watch.check()
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        with answers_checked():
            return protocol.decoded(line)

    def _write(self, ready: selectors.BaseSelector) -> None:
        try:
            del self._unsent[: os.write(self._stdin.fileno(), self._unsent[:_CHUNK])]
        except BlockingIOError:
            return
        except BrokenPipeError:  # the exit of the process gives the reason
            self._unsent.clear()
        if not self._unsent:
            ready.unregister(self._stdin)

    def _read(self, fd: int, ready: selectors.BaseSelector) -> None:
        data = os.read(fd, _CHUNK)
        if fd == self._stderr.fileno():
            self._log = (self._log + data)[-_LOG_BYTES:]
            self._output_bytes += len(data)
            if self._output_bytes > MOST_OUTPUT:
                raise invalid_answer(f"more than {MOST_OUTPUT >> 20} MiB of other output")
            if not data:
                ready.unregister(fd)
            return
        self._received += data
        if not data:
            raise self._ended()
        if len(self._received) > protocol.LONGEST:
            raise invalid_answer("a message without an end")

    def _ended(self) -> MachineFailed | DatasetError:
        """Return the error for a process that ended without a result."""
        code = self._process.wait(KILL_SECONDS)
        if code == -signal.SIGXCPU:
            return DatasetError(
                f"The dataset needs more than {CPU_SECONDS // 3600} hours of processor time to check. Split the dataset."
            )
        log.warning("process that reads a dataset ended without a result", exit_code=code, output=self._output())
        if code == -signal.SIGKILL:
            return MachineFailed(
                "The process that reads the dataset was killed (SIGKILL), probably because this host ran out of memory."
            )
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return MachineFailed(f"The process that reads the dataset ended {how} without a result.")

    def _output(self) -> str:
        return ascii(self._log.decode("utf-8", "replace").strip())
