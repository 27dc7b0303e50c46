"""The supervisor of training processes: starts a process for each training order, watches it, and ends it."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import structlog

from trainer.core.errors import HostFailed, HostSuspected, MachineFailed, RunFailed, host_failed
from trainer.core.events import Event, Finished, Warned
from trainer.core.ports import TrainingOrder
from trainer.core.stop import StopReason, StopSignal
from trainer.disk.folder_locks import FolderLocks
from trainer.disk.old_folders import OldFolders
from trainer.sandbox import private_network
from trainer.training.supervisor.environment import PRIVATE, PRIVATE_ELSEWHERE, child_environment, private_folder
from trainer.training.supervisor.event_dispatch import EventLimits
from trainer.training.supervisor.font_list import copy_font_list, make_font_list
from trainer.training.supervisor.host_test import host_test
from trainer.training.supervisor.orphans import adopt_orphans, end_orphans
from trainer.training.supervisor.process_tree import ProcessTree
from trainer.training.supervisor.shared_memory import SharedMemory
from trainer.training.supervisor.training_watch import TimeLimits, TrainingWatch
from trainer.training.supervisor.unconfined import DISABLED, unconfined
from trainer.training.wire import FAST_LOADER, SANDBOX, SandboxReport, encode_order

log = structlog.get_logger()

_IN_PRIVATE_NETWORK = (sys.executable, "-I", "-S", private_network.__file__)
_TEST_SECONDS = 120.0  # time limit of a test of the host
_UNUSED_SECONDS = 86_400.0  # after this time, a private folder without a lock counts as left by a crash


@dataclass(eq=False, kw_only=True)
class ChildTrainer:
    """Implements the port `Trainer` with one process for each training. Safe to use from several threads.

    `environment` is the environment of the supervisor; a training process gets only the allowed variables. `home`
    contains private folders of training processes. `weights` is the folder of the weights for the AMP check.
    If `warm_start` is set, a prestarted process has imported its packages and waits for a training order: see `warm`.
    `fast_loader_bytes` is the maximum size of the decoded images that a run may store (0: none). `sandbox` says what
    happens on a host without the whole sandbox: a run fails there (`required`) or continues with a warning (`auto`).
    With `0`, the training process does not enter the sandbox. With `private_network`, each training process has a network
    of its own; without it, only a training on several GPUs has one.
    """

    environment: Mapping[str, str]
    home: Path
    weights: Path
    program: Sequence[str] = (sys.executable, "-m", "trainer.training.child.main")
    limits: TimeLimits = field(default_factory=TimeLimits)
    warm_start: bool = False
    fast_loader_bytes: int = 0
    sandbox: Literal["required", "auto", "0"] = "auto"
    private_network: bool = False
    _locks: FolderLocks = field(default_factory=FolderLocks, init=False)
    _prestarted: ProcessTree | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)  # guards _prestarted and _closed
    _closed: bool = field(default=False, init=False)
    _not_killed: list[ProcessTree] = field(default_factory=list, init=False)  # trees that outlived their training

    def __post_init__(self) -> None:
        adopt_orphans()
        self.home, self.weights = self.home.absolute(), self.weights.absolute()
        self._private_folders = [
            OldFolders(root, prefix, self._locks, keep_seconds=_UNUSED_SECONDS, left_seconds=0.0, only_own=only_own)
            for root, prefix, only_own in (
                (self.home, PRIVATE, False),
                (Path(tempfile.gettempdir()), PRIVATE_ELSEWHERE, True),
            )
        ]

    def warm(self) -> None:
        """Prestart a process, unless one is already prestarted, `warm_start` is off, or the trainer is closed."""
        with self._lock:
            if not self.warm_start or self._closed or (self._prestarted and not self._prestarted.ended.is_set()):
                return
            ended, self._prestarted = self._prestarted, None
            if ended:
                ended.close()
            # if the host cannot start a process, the next training reports that
            with contextlib.suppress(MachineFailed):
                self._prestarted = self._start(devices=None)

    def close(self) -> None:
        """End the prestarted process. No other process is prestarted afterwards."""
        with self._lock:
            self._closed = True
            prestarted, self._prestarted = self._prestarted, None
        if prestarted:
            prestarted.close()

    def tidy(self) -> None:
        """Remove the private folders of processes whose service and subreapers were killed together.

        Make matplotlib's list of fonts. Raises OSError.
        """
        for folders in self._private_folders:
            folders.sweep()
        make_font_list(self.home, self.environment)

    def train(
        self,
        order: TrainingOrder,
        stop: StopSignal,
        on_event: Callable[[Event], None],
        on_line: Callable[[str], None],
    ) -> Finished:
        """Implement `Trainer.train`. An exception of `on_event` or `on_line` ends the training and is raised here."""
        stop.raise_if_set()
        try:
            prestarted = self._take_prestarted(order)
            with self._closed_afterwards(prestarted or self._start(order.devices)) as process:
                process.send(encode_order(order))
                watch = TrainingWatch(process, order, stop, self.limits)
                process.dispatcher.start(on_event, on_line, EventLimits.of(order.plan))
                if self.sandbox == "0":
                    process.dispatcher.event(unconfined(DISABLED))
                watch.run(on_training=self.warm)
                # if a prestarted process ended before it sent an event (out of memory), a new process is started
                if not prestarted or process.events_received or watch.is_stopped_by_us:
                    return _with_sandbox(watch.outcome(), process.sandbox)
            return self.train(order, stop, on_event, on_line)
        finally:
            if stop.reason is not StopReason.SHUTDOWN:
                self.warm()

    def test(self, devices: Sequence[int]) -> str | None:
        """Implement `Trainer.test`. A process that runs out of memory, or is killed, finds no problem."""
        limits = replace(self.limits, starting=_TEST_SECONDS)
        try:
            self._kill_the_rest()
            with self._closed_afterwards(self._start(tuple(devices))) as process:
                order = host_test(process.folder / "tmp", tuple(devices))
                process.send(encode_order(order))
                watch = TrainingWatch(process, order, StopSignal(), limits)
                watch.run(on_training=lambda: None)
                watch.test_outcome()
        except (HostFailed, HostSuspected) as error:
            return str(error)
        except (RunFailed, MachineFailed) as error:
            log.warning("test of the training process has no result", error=str(error))
        return None

    @contextlib.contextmanager
    def _closed_afterwards(self, process: ProcessTree) -> Iterator[ProcessTree]:
        """Yield the process. Then end its tree, and remove what it left."""
        shared_memory = SharedMemory()
        with contextlib.ExitStack() as afterwards:
            afterwards.callback(process.dispatcher.close)
            afterwards.callback(shared_memory.remove_new)
            afterwards.callback(_end_orphans, process)
            afterwards.callback(self._close, process)
            yield process

    def _close(self, process: ProcessTree) -> None:
        try:
            process.close()
        except HostSuspected:
            with self._lock:
                self._not_killed.append(process)
            raise

    def _kill_the_rest(self) -> None:
        """Raise HostSuspected if a process of an earlier training still cannot be killed."""
        with self._lock:
            self._not_killed = [process for process in self._not_killed if not process.ended.is_set()]
            left = tuple(self._not_killed)
        for process in left:
            process.kill()

    def _take_prestarted(self, order: TrainingOrder) -> ProcessTree | None:
        with self._lock:
            prestarted, self._prestarted = self._prestarted, None
        if prestarted and (prestarted.ended.is_set() or not self._has_network_for(order)):
            prestarted.close()
            return None
        return prestarted

    def _has_network_for(self, order: TrainingOrder) -> bool:
        return self.private_network or len(order.devices) <= 1

    def _start(self, devices: tuple[int, ...] | None) -> ProcessTree:
        try:
            folder = private_folder(self.home, self.weights)
            copy_font_list(self.home, folder)
        except OSError as error:
            raise host_failed(
                error,
                f"The private folder of the training process cannot be created in {self.home} ({error}): free disk "
                "space, or check the mount and its permissions.",
            ) from error
        environment = child_environment(self.environment, folder, devices=devices) | {
            FAST_LOADER: str(self.fast_loader_bytes),
            SANDBOX: self.sandbox,
        }
        in_private_network = self.sandbox != "0" and (self.private_network or len(devices or ()) > 1)
        program = [*_IN_PRIVATE_NETWORK, *self.program] if in_private_network else self.program
        return ProcessTree(program, environment, folder, self._locks, DISABLED if self.sandbox == "0" else None)


def _end_orphans(process: ProcessTree) -> None:
    """End all processes that outlived the tree of a training. Warn its run, although another training may own them."""
    if count := end_orphans():
        log.warning("processes of a training outlived their supervisors and were killed", processes=count)
        message = f"{count} processes were still running after the end of their training. They were killed."
        process.dispatcher.event(Warned(code="processes_left", message=message))


def _with_sandbox(finished: Finished, sandbox: SandboxReport | None) -> Finished:
    """Return the final event with the missing protections in its report. The training cannot choose this entry."""
    return replace(finished, report={**finished.report, "sandbox": list(sandbox.missing) if sandbox else []})
