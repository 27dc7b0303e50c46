"""One training on several GPUs: a process for each of them (a rank), started by torch's own launcher.

The child that got the order stands between the ranks and the supervisor. Each rank connects to a Unix socket in the
child's private folder and speaks there as the child does with the supervisor (wire.py): it hears the order and the
stops, and sends events. Rank 0 reports for all; the others are only heard when they crash.

A stop is rank 0's business, too: it keeps the state and ends, and the others, which then wait for it in vain, end with
the child. What follows the last epoch is done by the child alone, from the state that rank 0 kept.

Ultralytics' own way to several GPUs is not used: it empties the run folder, and its parent hears of nothing.
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

_TICK = 0.1  # seconds between two looks at the stop signal
_IMAGES_EACH = 16  # batch of a rank when the order leaves it to Ultralytics, which can measure memory for one GPU only
_CHUNK = 65536  # bytes


class RankCrashed(RuntimeError):
    """A rank raised; `event` is its last word."""

    def __init__(self, event: Crashed) -> None:
        super().__init__(event.message)
        self.event = event


class Ranks:
    """The ranks of one order, from their start until none of them is needed any more."""

    def __init__(self, order: TrainingOrder, stop: StopSignal, heard: Callable[[Event], None]) -> None:
        self._order = order
        self._stop = stop
        self._heard = heard
        self._told: StopReason | None = None
        self._connected: dict[socket.socket, bytearray] = {}  # and the beginning of a line from there
        self._crashed: Crashed | None = None
        self._phase = Phase.STARTING
        self.finished: Finished | None = None  # rank 0's last word

    def train(self) -> None:
        """Train to the last epoch. Raises `Stopped` or `RankCrashed`; ends this process as a rank ended that was killed."""
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
                self._pass_stop_on()
        self._judge(launched)

    def _accept(self, rank: socket.socket, ready: selectors.BaseSelector) -> None:
        self._connected[rank] = bytearray()
        ready.register(rank, selectors.EVENT_READ)
        _tell(rank, encode_order(self._order))
        if self._told:
            _tell(rank, encode_stop(self._told))

    def _read(self, rank: socket.socket, ready: selectors.BaseSelector) -> None:
        try:
            data = rank.recv(_CHUNK)
        except ConnectionResetError:
            data = b""
        *lines, rest = (self._connected[rank] + data).split(b"\n")
        self._connected[rank] = rest
        for line in lines:
            self._hear(decode_event(bytes(line)))
        if not data:
            ready.unregister(rank)
            del self._connected[rank]

    def _hear(self, event: Event) -> None:
        match event:
            case Crashed():
                self._crashed = self._crashed or event
            case ChildStopped():
                raise Stopped(self._stop.reason or StopReason.CANCELED)
            case Finished():
                self.finished = event
            case _:
                self._phase = event.phase if isinstance(event, PhaseStarted) else self._phase
                self._heard(event)

    def _pass_stop_on(self) -> None:
        reason = self._stop.reason
        if reason is None or reason is self._told:
            return
        if self._stop.must_stop and not self._connected:
            raise Stopped(reason)  # nothing has begun, or everything is over
        self._told = reason
        for rank in self._connected:
            _tell(rank, encode_stop(reason))

    def _judge(self, launched: Future[None]) -> None:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        try:
            launched.result()
        except ChildFailedError as failed:
            codes = [failure.exitcode for failure in failed.failures.values()]
            # torch ends the other ranks with SIGTERM, and they crash when one that they wait for is gone
            killed = next((-code for code in codes if code < 0 and -code != signal.SIGTERM), None)
            if killed:
                os.kill(os.getpid(), killed)  # for the diagnosis, this signal ended the training
            rank, code = next((rank, failure.exitcode) for rank, failure in failed.failures.items())
            message = f"rank {rank} ended with exit code {code} and without a word"
            wordless = Crashed(error="RankEnded", message=message, traceback="", phase=self._phase)
            raise RankCrashed(self._crashed or wordless) from None


def shared_order(order: TrainingOrder, batch: float, heard: Callable[[Event], None]) -> TrainingOrder:
    """The order as ranks can carry it out: a batch that can be divided among them, and no `rect`."""
    ranks, plan = len(order.devices), order.plan
    whole = max(int(batch) // ranks, 1) * ranks if batch >= 1 else _IMAGES_EACH * ranks
    if whole != batch:
        message = f"batch = {batch:g} became {whole}: on {ranks} GPUs it has to be a multiple of {ranks}, and a number."
        heard(Warned(code="batch_changed", message=message))
    if plan.args.get("rect"):
        heard(Warned(code="no_rect", message="rect = true has no effect on several GPUs."))
    return replace(order, plan=replace(plan, batch=whole, args={**plan.args, "rect": False}))


def _launch(ranks: int, program: Sequence[str]) -> Future[None]:
    """Start the program for each rank; done when all have ended, or when one has failed and the others are gone."""
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


def _tell(rank: socket.socket, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended: the launcher knows how
        rank.sendall(line)
