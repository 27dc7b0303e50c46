"""Starts a training process, sends commands, reads output and events, and ends all processes of the training."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.core.errors import HostSuspected, host_failed
from trainer.core.events import (
    BatchProgress,
    ChildStopped,
    Crashed,
    EpochFinished,
    Event,
    Finished,
    Phase,
    PhaseStarted,
    Warned,
)
from trainer.disk.folder_locks import FolderLocks
from trainer.disk.removal import remove_tree
from trainer.training.supervisor.event_dispatch import EventDispatcher
from trainer.training.supervisor.log_lines import OutputLines
from trainer.training.supervisor.pipe_reader import Pipe, read_until_closed
from trainer.training.supervisor.unconfined import unconfined
from trainer.training.wire import LONGEST_EVENT, SandboxReport, WireError, decode_event, decode_sandbox

_SUBREAPER = str(Path(__file__).with_name("subreaper.py"))
_KILL_SECONDS = 5.0  # time for SIGKILL to take effect; after the second wait, HostSuspected is raised
_REMOVE_SECONDS = 5.0  # time to wait for the removal of the private folder; a training can create millions of files
_TAIL_LINES = 200  # last lines of output, for the diagnosis
MIB = 2**20


class ProcessTree:
    """One execution of a program under a subreaper (subreaper.py), in a private folder that is removed afterwards.

    A thread reads output and events from the start, so that the program never blocks on a full pipe. The thread
    keeps `phase`, `epoch`, `events_received` (a count), `tail` (the last lines of output) and `final_event` up to date.
    `ended` is set when no process of the tree is left. Then `exit_code` is the exit code of the program (negative: the
    signal that ended the program). `sandbox` is the program's report on its sandbox, or None before the report; the
    argument `sandbox` is given if the program sends no report. `folder` is the private folder.
    """

    def __init__(
        self,
        program: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        locks: FolderLocks,
        sandbox: SandboxReport | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.dispatcher = EventDispatcher()
        self.phase = Phase.STARTING
        self.epoch = 0
        self.events_received = 0
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.final_event: Finished | ChildStopped | Crashed | None = None
        self.ended = threading.Event()
        self.exit_code: int | None = None
        self.folder = folder
        self._in_use = contextlib.ExitStack()
        self._in_use.enter_context(locks.held(folder))
        self._unsent = bytearray()
        self._write_lock = threading.Lock()
        self._output = OutputLines()
        self._partial_event = bytearray()
        self._garbled = False  # True after the warning about the first unreadable event
        self._start(program, environment)

    def send(self, line: bytes) -> None:
        """Write a line to the process's stdin without blocking. If the pipe is full, `flush` writes the rest later."""
        with self._write_lock:
            self._unsent += line
        self.flush()

    def flush(self) -> None:
        """Write the unsent bytes, without blocking."""
        with self._write_lock:
            while self._unsent and not self._stdin.closed:
                try:
                    del self._unsent[: os.write(self._stdin.fileno(), self._unsent)]
                except BlockingIOError:
                    return
                except BrokenPipeError:  # the process closed its stdin; its exit gives the reason
                    self._unsent.clear()

    def terminate(self) -> None:
        """Send SIGTERM to every process of the tree."""
        with self._write_lock, contextlib.suppress(OSError):  # the tree has ended or is being killed
            self._lifeline.send(b"t")

    def kill(self) -> None:
        """Send SIGKILL to every process of the tree. Return when no process is left.

        Raises HostSuspected if a process cannot be killed: a driver hangs, or there are very many processes.
        """
        with self._write_lock, contextlib.suppress(OSError):  # the tree has ended
            self._lifeline.shutdown(socket.SHUT_WR)
        if self.ended.wait(_KILL_SECONDS):
            return
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            # both subreapers may be suspended (SIGSTOP): kill the first, so that the second ends the tree after SIGCONT
            os.kill(pid, signal.SIGKILL)
            os.killpg(pid, signal.SIGCONT)
        if not self.ended.wait(_KILL_SECONDS):
            raise HostSuspected(
                f"The training process {pid} cannot be killed, so its GPU is not free; "
                "the driver probably hangs: look at dmesg and restart the host.",
            )

    def close(self) -> None:
        """Kill the tree, close every descriptor and end the reading thread. The dispatcher is not closed."""
        try:
            self.kill()
        finally:
            with self._write_lock:
                self._stdin.close()
            self._remove_folder()

    def _remove_folder(self) -> None:
        """Remove the private folder. If that takes long, the removal continues in its thread."""
        thread = threading.Thread(target=self._remove, name="remove-folder", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the thread limit of this process is reached
            self._remove()
        else:
            thread.join(_REMOVE_SECONDS)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # the subreaper has removed the folder, or the next sweep will remove it
            remove_tree(self.folder)
        self._in_use.close()

    def _start(self, program: Sequence[str], environment: Mapping[str, str]) -> None:
        self._lifeline, lifeline = socket.socketpair()
        events, child_events = os.pipe()
        subreaper = [sys.executable, "-I", "-S", _SUBREAPER, str(lifeline.fileno()), str(self.folder)]
        try:
            self._process = subprocess.Popen(
                [*subreaper, *program, "--events-fd", str(child_events)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env=dict(environment),
                cwd=environment["TMPDIR"],
                pass_fds=(lifeline.fileno(), child_events),
                start_new_session=True,
            )
        except OSError as error:
            os.close(events)
            self._lifeline.close()
            self._remove_folder()
            raise host_failed(
                error,
                f"The training process cannot be started on this host ({error}): install requirements.txt again, "
                "then run `doctor` on the host.",
            ) from error
        finally:
            lifeline.close()
            os.close(child_events)
        assert self._process.stdin
        assert self._process.stdout
        self._stdin = self._process.stdin
        os.set_blocking(self._stdin.fileno(), False)
        reader = threading.Thread(
            target=self._read,
            args=(self._process.stdout.fileno(), events),
            name="child-reader",
            daemon=True,
        )
        reader.start()

    def _read(self, output: int, events: int) -> None:
        # at most about 8,000 lines and 1,000 events per second; a training needs a few per second
        lines = Pipe(output, self._receive_output, per_second=4 * MIB, burst=64 * MIB, per_line=512)
        reports = Pipe(events, self._receive_events, per_second=2 * MIB, burst=16 * MIB, per_line=2048)
        read_until_closed((lines, reports), self._lifeline)
        os.close(events)
        self._finish_reading()

    def _finish_reading(self) -> None:
        if self._partial_event:
            self._receive_event(bytes(self._partial_event))
        for line in self._output.close():
            self._receive_line(line)
        self.exit_code = self._process.wait()
        with contextlib.suppress(ChildProcessError):
            # in a container, the service may adopt the second subreaper after the first one was killed
            os.waitpid(-self._process.pid, 0)
        assert self._process.stdout
        self._process.stdout.close()
        with self._write_lock:
            self._lifeline.close()
        self.ended.set()

    def _receive_output(self, data: bytes) -> None:
        for line in self._output.feed(data):
            self._receive_line(line)

    def _receive_line(self, line: str) -> None:
        self.tail.append(line)
        self.dispatcher.line(line)

    def _receive_events(self, data: bytes) -> None:
        self._partial_event += data
        *lines, rest = self._partial_event.split(b"\n")
        self._partial_event = rest if len(rest) <= LONGEST_EVENT else bytearray(b"a line without an end")
        for line in lines:
            if line.strip():
                self._receive_event(bytes(line))

    def _receive_sandbox(self, line: bytes) -> None:
        try:
            self.sandbox = decode_sandbox(line)
        except WireError as error:  # the program could be without a sandbox, so its events are ignored
            self.sandbox = SandboxReport(problem=f"no report on the sandbox: {error}")
        if self.sandbox.missing:
            self.dispatcher.event(unconfined(self.sandbox))

    def _receive_event(self, line: bytes) -> None:
        if self.sandbox is None:
            self._receive_sandbox(line)
            return
        if self.sandbox.problem:
            return
        try:
            event = decode_event(line)
        except WireError as error:
            self._receive_line(f"[not an event] {error}")
            if self._garbled:
                return
            self._garbled = True
            event = Warned(
                code="garbled_event", message=f"The training process sent an event that cannot be read: {error}."
            )
        if self.final_event is None:
            self._update_state(event)
            self.dispatcher.event(event, len(line))

    def _update_state(self, event: Event) -> None:
        self.events_received += 1
        if isinstance(event, PhaseStarted | BatchProgress):
            self.phase = event.phase
        if isinstance(event, BatchProgress | EpochFinished):
            self.epoch = event.epoch
        if isinstance(event, Finished | ChildStopped | Crashed):
            self.final_event = event
