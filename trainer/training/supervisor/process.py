"""The supervisor's side of the child: starts it, hands it its order, listens, stops it, and says how it ended."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from trainer.core.errors import HostFailed, MachineFailed
from trainer.core.events import Crashed, Event, Finished, Phase
from trainer.core.ports import TrainingOrder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.disk.folder_locks import FolderLocks
from trainer.disk.old_folders import OldFolders
from trainer.training.supervisor.diagnosis import Evidence, diagnose, stuck
from trainer.training.supervisor.environment import (
    FAST_LOADER,
    PRIVATE,
    PRIVATE_ELSEWHERE,
    SANDBOX,
    child_environment,
    private_folder,
)
from trainer.training.supervisor.process_tree import ChildTree
from trainer.training.wire import encode_order, encode_stop

_UNUSED_SECONDS = 86_400.0  # after which a private folder that nobody ever locked is a crash's
_TICK = 0.1  # seconds between two looks at the stop signal and the clocks
_TERM_SECONDS = 2.0  # between SIGTERM and SIGKILL
_AT_ONCE = (StopReason.LOST, StopReason.STUCK)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a child may take, in seconds.

    `grace`: to follow a polite request. `shutdown`: likewise, when there is a state to keep. `starting`: to its first
    event. `stall`: between two events, unless `phases` has another number for the phase. `exit`: to end after its last
    word (it may still be drawing plots).
    """

    grace: float = 10.0
    shutdown: float = 45.0
    starting: float = 300.0
    stall: float = 1800.0
    exit: float = 30.0
    phases: Mapping[Phase, float] = field(default_factory=dict)

    def of(self, phase: Phase) -> float:
        return self.phases.get(phase, self.starting if phase is Phase.STARTING else self.stall)


class ChildTrainer:
    """Implements the port `Trainer`, one process per training. Safe to use from several threads.

    `environment` is the supervisor's; only what is harmless of it reaches the child. `home` is for private folders
    and caches of the children, `weights` the folder where Ultralytics finds weights that it needs itself. With
    `warm_start`, a spare child that has imported everything waits for the next order: see `warm`. Of decoded images up
    to `fast_loader_bytes` are kept during a run (0: none).
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        home: Path,
        weights: Path,
        program: Sequence[str] = (sys.executable, "-m", "trainer.training.child.main"),
        patience: Patience | None = None,
        warm_start: bool = False,
        threads: int | None = None,
        timestamp_output: bool = True,
        fast_loader_bytes: int = 0,
        sandbox: bool = True,
    ) -> None:
        self._environment = dict(environment)
        self._home = home.absolute()
        self._weights = weights.absolute()
        self._program = tuple(program)
        self._patience = patience or Patience()
        self._warm_start = warm_start
        self._threads = threads
        self._timestamp_output = timestamp_output
        self._fast_loader_bytes = fast_loader_bytes
        self._sandbox = sandbox
        self._locks = FolderLocks()
        self._private_folders = [
            OldFolders(root, prefix, self._locks, keep_seconds=_UNUSED_SECONDS, left_seconds=0.0)
            for root, prefix in ((self._home, PRIVATE), (Path(tempfile.gettempdir()), PRIVATE_ELSEWHERE))
        ]
        self._spare: ChildTree | None = None
        self._lock = threading.Lock()  # guards _spare and _closed
        self._closed = False

    def warm(self) -> None:
        """Start a spare child unless one is waiting, spares are off, or the trainer is closed."""
        with self._lock:
            if not self._warm_start or self._closed or (self._spare and not self._spare.ended.is_set()):
                return
            dead, self._spare = self._spare, None
            if dead:
                dead.close()
            # a host that cannot start a spare now says so when it cannot start a training
            with contextlib.suppress(MachineFailed):
                self._spare = self._start(devices=None)

    def close(self) -> None:
        """End the spare, for good."""
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, None
        if spare:
            spare.close()

    def tidy(self) -> None:
        """Remove the private folders of processes whose service was killed together with their guardians."""
        for folders in self._private_folders:
            folders.sweep()

    def train(
        self,
        order: TrainingOrder,
        stop: StopSignal,
        on_event: Callable[[Event], None],
        on_line: Callable[[str], None],
    ) -> Finished:
        """See the port. An exception of `on_event` or `on_line` ends the training and is raised here."""
        stop.raise_if_set()
        try:
            with self._child(order) as (child, is_spare):
                training = _Training(child, order, stop, self._patience)
                child.delivery.start(on_event, on_line)
                training.watch(when_busy=self.warm)
                # a spare can die of old age (memory) in the moment in which it is needed
                if not is_spare or child.events_heard or training.ended_by_us:
                    return training.ending()
            return self.train(order, stop, on_event, on_line)
        finally:
            if stop.reason is not StopReason.SHUTDOWN:
                self.warm()

    @contextlib.contextmanager
    def _child(self, order: TrainingOrder) -> Iterator[tuple[ChildTree, bool]]:
        """A child of our own with the order in its stdin; nothing is left of it afterwards."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare and spare.ended.is_set():
            spare.close()
            spare = None
        child = spare or self._start(order.devices)
        with contextlib.ExitStack() as afterwards:
            afterwards.callback(child.delivery.close)
            afterwards.callback(child.close)
            child.send(encode_order(order))
            yield child, spare is not None

    def _start(self, devices: tuple[int, ...] | None) -> ChildTree:
        try:
            folder = private_folder(self._home, self._weights)
        except OSError as error:
            raise HostFailed(f"The training process's folder below {self._home} cannot be made: {error}.") from error
        environment = child_environment(
            self._environment,
            folder,
            self._home,
            devices=devices,
            threads=self._threads,
        ) | {FAST_LOADER: str(self._fast_loader_bytes), SANDBOX: str(int(self._sandbox))}
        child = ChildTree(self._program, environment, folder, self._locks)
        if self._timestamp_output:
            child.on_line = _timestamped
        return child


class _Training:
    """One child with its order, watched until nothing of it is left."""

    def __init__(self, child: ChildTree, order: TrainingOrder, stop: StopSignal, patience: Patience) -> None:
        self._child = child
        self._order = order
        self._stop = stop
        self._patience = patience
        self._heard = child.events_heard
        self._silent = 0.0  # seconds
        self._looked_at = time.monotonic()
        self._oom_kills = oom_kills()
        self._asked: StopReason | None = None
        self._kill_at = float("inf")
        self._terminate_at = float("inf")
        self._stuck: Exception | None = None
        self._last_word_at: float | None = None

    @property
    def ended_by_us(self) -> bool:
        return self._stuck is not None or self._stop.must_stop

    def watch(self, when_busy: Callable[[], None]) -> None:
        """Return when the tree is gone; ask, terminate and kill as the stop signal and the clocks demand."""
        child = self._child
        warmed = False
        while not child.ended.wait(_TICK):
            now = time.monotonic()
            child.flush()
            self._obey_stop(now)
            self._judge_silence(now)
            if child.delivery.failed:
                self._kill_at = now
            if now >= self._kill_at:
                child.kill()
            elif now >= self._terminate_at:
                child.terminate()
                self._terminate_at = float("inf")
                self._kill_at = min(self._kill_at, now + _TERM_SECONDS)
            if not warmed and child.phase is Phase.TRAINING:
                warmed = True
                when_busy()

    def ending(self) -> Finished:
        """The result; raises `Stopped`, `RunFailed` or `MachineFailed` when there is none."""
        child, reason = self._child, self._stop.reason
        if reason is StopReason.LOST:
            raise Stopped(reason)
        if isinstance(child.last_word, Finished):
            return child.last_word
        if reason is not None and self._stop.must_stop:
            raise Stopped(reason)
        if self._stuck:
            raise self._stuck
        raise diagnose(self._evidence())

    def _obey_stop(self, now: float) -> None:
        reason = self._stop.reason
        if reason is None or reason is self._asked:
            return
        self._asked = reason
        if reason in _AT_ONCE:
            self._kill_at = now
            return
        self._child.send(encode_stop(reason))
        if reason is not StopReason.FINISH:
            patience = self._patience.shutdown if reason is StopReason.SHUTDOWN else self._patience.grace
            self._terminate_at = min(self._terminate_at, now + patience)

    def _judge_silence(self, now: float) -> None:
        child = self._child
        # counted in small steps, because a supervisor that was itself suspended heard nothing meanwhile
        self._silent += min(now - self._looked_at, 10 * _TICK)
        self._looked_at = now
        if child.last_word:
            self._last_word_at = self._last_word_at or now
            if now - self._last_word_at > self._patience.exit:
                self._kill_at = now
            return
        if child.events_heard != self._heard:
            self._heard, self._silent = child.events_heard, 0.0
        budget = self._patience.of(child.phase)
        if self._silent > budget and not self._stop.must_stop:
            self._stuck = stuck(child.phase, child.epoch, budget)
            self._kill_at = now

    def _evidence(self) -> Evidence:
        child, order = self._child, self._order
        return Evidence(
            exit_code=child.exit_code,
            phase=child.phase,
            crashed=child.last_word if isinstance(child.last_word, Crashed) else None,
            output=tuple(child.tail),
            epoch=child.epoch,
            batch=order.plan.batch,
            imgsz=order.plan.imgsz,
            oom_kills=oom_kills() - self._oom_kills,
            free_disk=shutil.disk_usage(order.run_dir).free if order.run_dir.exists() else None,
        )


def oom_kills() -> int:
    """How often the kernel's out-of-memory killer struck since the host booted, for the host or a control group."""
    with contextlib.suppress(OSError):  # a container runtime may not show it
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, value = line.split()
            if name == "oom_kill":
                return int(value)
    return 0


def _timestamped(line: str) -> str:
    return f"{datetime.now(UTC).isoformat(sep=' ', timespec='milliseconds').removesuffix('+00:00')}Z {line}"
