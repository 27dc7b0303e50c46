"""One training on several GPUs: one process (a rank) for each GPU, started by torch's launcher.

The training process passes messages between the ranks and the supervisor. Each rank connects to a Unix socket in the
private folder and uses the protocol of wire.py. It receives the training order and stop requests, and sends events.
Rank 0 reports for all ranks. Of the other ranks, only the event of a crash is used.

Only rank 0 obeys a stop request: it saves a checkpoint and exits. The other ranks then wait for rank 0 and end with the
training process. After the last epoch, the training process continues from the checkpoint of rank 0.

Ultralytics' own support for several GPUs is not used: it empties the run folder, and its parent gets no events.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
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
        self._connected: dict[socket.socket, bytearray] = {}  # rank → the incomplete line that it has sent
        self._crashed: Crashed | None = None
        self._phase = Phase.STARTING
        self.finished: Finished | None = None  # the final event of rank 0

    def train(self) -> None:
        """Train to the last epoch. Raises `Stopped` or `RankCrashed`.

        A signal that kills a rank is also sent to this process.
        """
        folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        with (
            socket.socket(socket.AF_UNIX) as listener,
            selectors.DefaultSelector() as ready,
            contextlib.ExitStack() as connections,
        ):
            listener.bind(str(folder / "socket"))
            listener.listen(len(self._order.devices))
            ready.register(listener, selectors.EVENT_READ)
            launched = _launch(len(self._order.devices), [*PROGRAM, str(folder / "socket")])
            while not launched.done() or self._connected:
                for key, _ in ready.select(_TICK):
                    if key.fileobj is listener:
                        self._accept(connections.enter_context(listener.accept()[0]), ready)
                    else:
                        self._read(key.fileobj, ready)  # type: ignore[arg-type]
                self._forward_stop()
        self._raise_failure(launched)

    def _accept(self, rank: socket.socket, ready: selectors.BaseSelector) -> None:
        self._connected[rank] = bytearray()
        ready.register(rank, selectors.EVENT_READ)
        _send(rank, encode_order(self._order))
        if self._forwarded:
            _send(rank, encode_stop(self._forwarded))

    def _read(self, rank: socket.socket, ready: selectors.BaseSelector) -> None:
        try:
            data = rank.recv(_CHUNK)
        except ConnectionResetError:
            data = b""
        *lines, rest = (self._connected[rank] + data).split(b"\n")
        self._connected[rank] = rest
        for line in lines:
            self._receive(decode_event(bytes(line)))
        if not data:
            ready.unregister(rank)
            del self._connected[rank]

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
        for rank in self._connected:
            _send(rank, encode_stop(reason))

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


def _send(rank: socket.socket, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # the rank has ended; the launcher reports how
        rank.sendall(line)
