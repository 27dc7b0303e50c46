"""Watches one training process: applies stop requests and time limits, and determines the outcome."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.core.events import ChildStopped, Crashed, Finished, Phase
from trainer.core.ports import TrainingOrder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.training.supervisor.diagnosis import Evidence, diagnose, stuck
from trainer.training.supervisor.process_tree import ProcessTree
from trainer.training.supervisor.unconfined import not_entered
from trainer.training.wire import encode_stop

_TICK = 0.1  # seconds between two checks of the stop signal and the time limits
_TERM_SECONDS = 2.0  # time between SIGTERM and SIGKILL
_KILL_AT_ONCE = (StopReason.LOST, StopReason.STUCK)


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """The time limits of a training process, in seconds.

    `grace`: to exit after a stop request. `shutdown`: to save a checkpoint and exit at a shutdown.
    `starting`: until its first event. `stall`: between two events. `exit`: to exit after its final event (it may still
    draw plots).
    """

    grace: float = 10.0
    shutdown: float = 45.0
    starting: float = 300.0
    stall: float = 1800.0
    exit: float = 30.0


class TrainingWatch:
    """Watches one training process, from its training order to the end of its process tree."""

    def __init__(self, process: ProcessTree, order: TrainingOrder, stop: StopSignal, limits: TimeLimits) -> None:
        self._process = process
        self._order = order
        self._stop = stop
        self._limits = limits
        self._events_seen = process.events_received
        self._silent_seconds = 0.0
        self._checked_at = time.monotonic()
        self._oom_kills = oom_kills()
        self._requested: StopReason | None = None
        self._kill_at = float("inf")
        self._terminate_at = float("inf")
        self._stuck: Exception | None = None
        self._final_event_at: float | None = None

    @property
    def is_stopped_by_us(self) -> bool:
        return self._stuck is not None or self._stop.must_stop

    def run(self, on_training: Callable[[], None]) -> None:
        """Return when the process tree has ended. `on_training` is called once, when the first epoch starts."""
        process = self._process
        is_training = False
        while not process.ended.wait(_TICK):
            now = time.monotonic()
            process.flush()
            self._apply_stop(now)
            self._check_silence(now)
            if process.dispatcher.failed or (process.sandbox and process.sandbox.problem):
                self._kill_at = now
            self._signal_if_due(now)
            if not is_training and process.phase is Phase.TRAINING:
                is_training = True
                on_training()

    def test_outcome(self) -> None:
        """Return if the process passed the test of its order. Raises `RunFailed` or `MachineFailed` otherwise."""
        if not isinstance(self._process.final_event, ChildStopped):
            self.outcome()

    def outcome(self) -> Finished:
        """Return the result. Raises `Stopped`, `RunFailed` or `MachineFailed` if there is no result."""
        final_event, reason = self._process.final_event, self._stop.reason
        if reason is StopReason.LOST:
            raise Stopped(reason)
        if isinstance(final_event, Finished):
            return final_event
        if reason is not None and self._stop.must_stop:
            raise Stopped(reason)
        if self._process.sandbox and self._process.sandbox.problem:
            raise not_entered(self._process.sandbox.problem)
        if self._stuck:
            raise self._stuck
        raise diagnose(self._evidence())

    def _apply_stop(self, now: float) -> None:
        reason = self._stop.reason
        if reason is None or reason is self._requested:
            return
        self._requested = reason
        if reason in _KILL_AT_ONCE:
            self._kill_at = now
            return
        self._process.send(encode_stop(reason))
        if reason is not StopReason.FINISH:
            grace = self._limits.shutdown if reason is StopReason.SHUTDOWN else self._limits.grace
            self._terminate_at = min(self._terminate_at, now + grace)

    def _check_silence(self, now: float) -> None:
        process = self._process
        # at most one second is added per check, because a suspended supervisor could not receive events
        self._silent_seconds += min(now - self._checked_at, 10 * _TICK)
        self._checked_at = now
        if process.final_event:
            self._final_event_at = self._final_event_at or now
            if now - self._final_event_at > self._limits.exit:
                self._kill_at = now
            return
        if process.events_received != self._events_seen:
            self._events_seen, self._silent_seconds = process.events_received, 0.0
        limit = self._limits.starting if process.phase is Phase.STARTING else self._limits.stall
        if self._silent_seconds > limit and not self._stop.must_stop:
            self._stuck = stuck(process.phase, process.epoch, limit)
            self._kill_at = now

    def _signal_if_due(self, now: float) -> None:
        if now >= self._kill_at:
            self._process.kill()
        elif now >= self._terminate_at:
            self._process.terminate()
            self._terminate_at = float("inf")
            self._kill_at = min(self._kill_at, now + _TERM_SECONDS)

    def _evidence(self) -> Evidence:
        process, order = self._process, self._order
        return Evidence(
            exit_code=process.exit_code,
            phase=process.phase,
            crashed=process.final_event if isinstance(process.final_event, Crashed) else None,
            output=tuple(process.tail),
            epoch=process.epoch,
            batch=order.plan.batch,
            imgsz=order.plan.imgsz,
            oom_kills=oom_kills() - self._oom_kills,
            free_disk=shutil.disk_usage(order.run_dir).free if order.run_dir.exists() else None,
        )


def oom_kills() -> int:
    """Return the number of out-of-memory kills since the host booted, in any control group."""
    with contextlib.suppress(OSError):  # some container runtimes hide the file
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, value = line.split()
            if name == "oom_kill":
                return int(value)
    return 0
