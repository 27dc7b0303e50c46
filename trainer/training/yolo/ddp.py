"""One training on several GPUs: one process (a rank) for each GPU, started by torch's launcher.

The training process passes messages between the ranks and the supervisor. It creates a folder in the private folder
with the training order, and with two named pipes for each rank: stop requests and events, in the protocol of wire.py.
The sandbox refuses sockets with a path. Rank 0 reports for all ranks. Of the other ranks, only the event of a crash is
used.

Only rank 0 obeys a stop request: it saves a checkpoint and exits. The other ranks then wait for rank 0 and end with the
training process. After the last epoch, the training process continues from the checkpoint of rank 0.

Ultralytics' own support for several GPUs is not used: it empties the run folder, and its parent gets no events.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from trainer.core.events import ChildStopped, Crashed, Event, Finished, Phase, PhaseStarted, Warned
from trainer.core.ports import TrainingOrder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.training.wire import decode_event, encode_order, encode_stop

PROGRAM = (sys.executable, "-m", "trainer.training.child.ddp_rank")

_TICK = 0.1  # seconds between two checks of the stop signal
_IMAGES_PER_RANK = 16  # replaces an automatic batch size, which Ultralytics can choose only for one GPU
_CHUNK = 65536  # bytes
ORDER = "order"  # the file of the training order in the folder of the ranks
STOPS, EVENTS = "stops-{}", "events-{}"  # the named pipes of a rank in this folder


class RankCrashed(RuntimeError):
    """A rank failed; `event` is its final event."""

    def __init__(self, event: Crashed) -> None:
        super().__init__(event.message)
        self.event = event


class Ranks:
    """The ranks of one training, from their start to the last epoch."""

    def __init__(self, order: TrainingOrder, stop: StopSignal, on_event: Callable[[Event], None]) -> None:
        self._order = order
        self._stop = stop
        self._on_event = on_event
        self._forwarded: StopReason | None = None
        self._connected: dict[int, int] = {}  # rank → descriptor for stop requests
        self._partial: dict[int, bytes] = {}  # descriptor of a rank's events → the incomplete line that it has sent
        self._crashed: Crashed | None = None
        self._phase = Phase.STARTING
        self.finished: Finished | None = None  # the final event of rank 0

    def train(self) -> None:
        """Train to the last epoch. Raises `Stopped` or `RankCrashed`.

        A signal that kills a rank is also sent to this process.
        """
        folder, ranks = Path(tempfile.mkdtemp(prefix="ranks-")), range(len(self._order.devices))
        (folder / ORDER).write_bytes(encode_order(self._order))
        for rank in ranks:
            os.mkfifo(folder / STOPS.format(rank), 0o600)
            os.mkfifo(folder / EVENTS.format(rank), 0o600)
        with selectors.PollSelector() as ready, contextlib.ExitStack() as pipes:
            for rank in ranks:
                # without O_NONBLOCK, this would wait for the rank
                events = os.open(folder / EVENTS.format(rank), os.O_RDONLY | os.O_NONBLOCK)
                pipes.callback(os.close, events)
                ready.register(events, selectors.EVENT_READ, rank)
            launched = _launch(len(ranks), [*PROGRAM, str(folder)])
            starting = set(ranks)
            while not launched.done() or self._connected:
                starting = {rank for rank in starting if not self._connect(rank, folder / STOPS.format(rank), pipes)}
                for key, _ in ready.select(_TICK):
                    self._read(key.fd, key.data, ready)
                self._forward_stop()
        self._raise_failure(launched)

    def _connect(self, rank: int, stops: Path, pipes: contextlib.ExitStack) -> bool:
        """Return whether the rank has started and waits for stop requests."""
        try:
            self._connected[rank] = os.open(stops, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: no process reads from the pipe
            return False
        pipes.callback(os.close, self._connected[rank])
        if self._forwarded:
            _send(self._connected[rank], encode_stop(self._forwarded))
        return True

    def _read(self, events: int, rank: int, ready: selectors.BaseSelector) -> None:
        data = os.read(events, _CHUNK)
        *lines, self._partial[events] = (self._partial.get(events, b"") + data).split(b"\n")
        for line in lines:
            self._receive(decode_event(line))
        if not data:
            ready.unregister(events)
            self._connected.pop(rank, None)

    def _receive(self, event: Event) -> None:
        match event:
            case Crashed():
                self._crashed = self._crashed or event
            case ChildStopped():
                raise Stopped(self._stop.reason or StopReason.CANCELED)
            case Finished():
                self.finished = event
            case _:
                self._phase = event.phase if isinstance(event, PhaseStarted) else self._phase
                self._on_event(event)

    def _forward_stop(self) -> None:
        reason = self._stop.reason
        if reason is None or reason is self._forwarded:
            return
        if self._stop.must_stop and not self._connected:
            raise Stopped(reason)  # the ranks are not started yet, or have ended
        self._forwarded = reason
        for stops in self._connected.values():
            _send(stops, encode_stop(reason))

    def _raise_failure(self, launched: Future[None]) -> None:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        try:
            launched.result()
        except ChildFailedError as failed:
            codes = [failure.exitcode for failure in failed.failures.values()]
            # after a failure, torch sends SIGTERM to the other ranks; they can also crash when the failed rank ends
            killed = next((-code for code in codes if code < 0 and -code != signal.SIGTERM), None)
            if killed:
                os.kill(os.getpid(), killed)  # the supervisor then sees this signal
            rank, code = next((rank, failure.exitcode) for rank, failure in failed.failures.items())
            message = f"rank {rank} ended with exit code {code} and without an error message"
            unexplained = Crashed(error="RankEnded", message=message, traceback="", phase=self._phase)
            raise RankCrashed(self._crashed or unexplained) from None


def shared_order(order: TrainingOrder, batch: float, on_event: Callable[[Event], None]) -> TrainingOrder:
    """Return the training order for the ranks: the batch size is a multiple of their number, and `rect` is off."""
    ranks, plan = len(order.devices), order.plan
    whole = max(int(batch) // ranks, 1) * ranks if batch >= 1 else _IMAGES_PER_RANK * ranks
    if whole != batch:
        message = f"batch = {batch:g} became {whole}: on {ranks} GPUs, the batch size must be a multiple of {ranks}."
        on_event(Warned(code="batch_changed", message=message))
    if plan.args.get("rect"):
        on_event(Warned(code="no_rect", message="rect = true has no effect on several GPUs."))
    return replace(order, plan=replace(plan, batch=whole, args={**plan.args, "rect": False}))


def _launch(ranks: int, program: Sequence[str]) -> Future[None]:
    """Start the program for each rank. The future is done when all ranks have ended.

    After a failure, torch ends all ranks.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        run_id="training",
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    pool = ThreadPoolExecutor(1, thread_name_prefix="launcher")
    launched = pool.submit(lambda: elastic_launch(config, program[0])(*program[1:]) and None)
    pool.shutdown(wait=False)
    return launched


def _send(stops: int, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # the rank has ended; the launcher reports how
        os.write(stops, line)
