"""A child process with everything that it starts: begun, listened to, spoken to, ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trainer.core.errors import HostFailed
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
from trainer.training.supervisor.event_dispatch import Delivery
from trainer.training.supervisor.log_lines import OutputLines
from trainer.training.wire import LONGEST_LINE, WireError, decode_event

_GUARDIAN = str(Path(__file__).with_name("subreaper.py"))
_CHUNK = 65536  # bytes; as much as a pipe holds
_KILL_SECONDS = 5.0  # that SIGKILL may take, before harder means and before giving up
_TAIL = 200  # lines kept for the diagnosis


class ChildTree:
    """One run of a program below a guardian (subreaper.py), in the private folder that is deleted at its end.

    A thread reads its output and its events from the start, so that it can never block on a full pipe. What was heard
    last is in `phase`, `epoch`, `events_heard` (their number), `tail` and `last_word`; `ended` is set when no
    process of the tree is left, `exit_code` is then the program's (negative: the signal that ended it).
    """

    def __init__(
        self,
        program: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        locks: FolderLocks,
    ) -> None:
        self.delivery = Delivery()
        self.phase = Phase.STARTING
        self.epoch = 0
        self.events_heard = 0
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self.last_word: Finished | ChildStopped | Crashed | None = None
        self.ended = threading.Event()
        self.exit_code: int | None = None
        self.on_line: Callable[[str], str] = str  # what a line becomes on its way to the log
        self._folder = folder
        self._in_use = contextlib.ExitStack()
        self._in_use.enter_context(locks.held(folder))
        self._unsent = bytearray()
        self._speaking = threading.Lock()
        self._output = OutputLines()
        self._half_event = bytearray()
        self._garbled = False  # one warning is enough
        self._start(program, environment)

    # ── speaking ──

    def send(self, line: bytes) -> None:
        """Put a line into the child's stdin, as far as it has room; `flush` sends the rest."""
        with self._speaking:
            self._unsent += line
        self.flush()

    def flush(self) -> None:
        with self._speaking:
            while self._unsent and not self._stdin.closed:
                try:
                    del self._unsent[: os.write(self._stdin.fileno(), self._unsent)]
                except BlockingIOError:
                    return
                except BrokenPipeError:  # the child reads no more: its end will say why
                    self._unsent.clear()

    def terminate(self) -> None:
        """SIGTERM for every process of the tree."""
        with self._speaking, contextlib.suppress(OSError):  # it has ended, or is being killed
            self._lifeline.send(b"t")

    def kill(self) -> None:
        """SIGKILL for every process of the tree; returns when none is left.

        Raises HostFailed when the kernel cannot end one (a driver that hangs).
        """
        with self._speaking, contextlib.suppress(OSError):  # it has ended
            self._lifeline.shutdown(socket.SHUT_WR)
        if self.ended.wait(_KILL_SECONDS):
            return
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            # the guardians are stopped: the first one ends, and the second one, which then continues, ends the tree
            os.kill(pid, signal.SIGKILL)
            os.killpg(pid, signal.SIGCONT)
        if not self.ended.wait(_KILL_SECONDS):
            raise HostFailed(
                f"The training process {pid} cannot be killed, so its GPU is not free; "
                "the driver probably hangs: look at dmesg and restart the host.",
            )

    def close(self) -> None:
        """Kill what is left, close every descriptor, end the reading thread. Waiting deliveries are not waited for."""
        try:
            self.kill()
        finally:
            with self._speaking:
                self._stdin.close()
            self._remove_folder()

    def _remove_folder(self) -> None:
        with contextlib.suppress(OSError):  # the guardian did it already, or a sweep will
            remove_tree(self._folder)
        self._in_use.close()

    # ── beginning and listening ──

    def _start(self, program: Sequence[str], environment: Mapping[str, str]) -> None:
        self._lifeline, lifeline = socket.socketpair()
        events, child_events = os.pipe()
        guardian = [sys.executable, "-I", "-S", _GUARDIAN, str(lifeline.fileno()), str(self._folder)]
        try:
            self._process = subprocess.Popen(
                [*guardian, *program, "--events-fd", str(child_events)],
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
            raise HostFailed(f"The training process cannot be started on this host: {error}.") from error
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
        hear = {output: self._hear_output, events: self._hear_events}
        with selectors.DefaultSelector() as ready:
            for fd in hear:
                os.set_blocking(fd, False)
                ready.register(fd, selectors.EVENT_READ)
            ready.register(self._lifeline, selectors.EVENT_READ)
            alive = True
            while alive:
                for fd in [key.fd for key, _ in ready.select()]:
                    if fd == self._lifeline.fileno():  # it ends with the last guardian
                        alive = False
                    elif not self._read_some(fd, hear[fd]):
                        ready.unregister(fd)
        for fd, heard in hear.items():
            # at most what the pipe held: an orphan that nobody could kill may still write
            for _ in range(32):
                if not self._read_some(fd, heard):
                    break
        os.close(events)
        self._finish_reading()

    def _read_some(self, fd: int, heard: Callable[[bytes], None]) -> bool:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return True
        heard(data)
        return bool(data)

    def _finish_reading(self) -> None:
        if self._half_event:
            self._hear_event(bytes(self._half_event))
        for line in self._output.close():
            self._hear_line(line)
        self.exit_code = self._process.wait()
        with contextlib.suppress(ChildProcessError):
            # in a container the service can be the process that adopts the second guardian, when the first was killed
            os.waitpid(-self._process.pid, 0)
        assert self._process.stdout
        self._process.stdout.close()
        with self._speaking:
            self._lifeline.close()
        self.ended.set()

    def _hear_output(self, data: bytes) -> None:
        for line in self._output.feed(data):
            self._hear_line(line)

    def _hear_line(self, line: str) -> None:
        self.tail.append(line)
        self.delivery.line(self.on_line(line))

    def _hear_events(self, data: bytes) -> None:
        self._half_event += data
        *lines, rest = self._half_event.split(b"\n")
        self._half_event = rest if len(rest) <= LONGEST_LINE else bytearray(b"a line without an end")
        for line in lines:
            if line.strip():
                self._hear_event(bytes(line))

    def _hear_event(self, line: bytes) -> None:
        try:
            event = decode_event(line)
        except WireError as error:
            self._hear_line(f"[not an event] {error}")
            if self._garbled:
                return
            self._garbled = True
            event = Warned(code="garbled_event", message=f"The training process sent something unreadable: {error}.")
        if self.last_word is None:
            self._note(event)
            self.delivery.event(event)

    def _note(self, event: Event) -> None:
        self.events_heard += 1
        if isinstance(event, PhaseStarted | BatchProgress):
            self.phase = event.phase
        if isinstance(event, BatchProgress | EpochFinished):
            self.epoch = event.epoch
        if isinstance(event, Finished | ChildStopped | Crashed):
            self.last_word = event
