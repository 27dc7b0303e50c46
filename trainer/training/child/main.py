"""The training process: `python -m trainer.training.child.main --events-fd N`. It trains once and ends.

Orders and stops come on stdin, events go to descriptor N (see wire.py). A spare, which is started without a GPU to see,
imports everything slow before its order comes. Once the order is known the process confines itself to what that needs
(reach.py), before any file of the dataset or of a model is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from trainer.core.events import ChildStopped, Crashed, Event, Phase, Warned
from trainer.core.ports import TrainingOrder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.training.child.event_pipe import Outbox
from trainer.training.sandbox.audit_hook import refuse_network
from trainer.training.sandbox.policy import confine
from trainer.training.supervisor.environment import SANDBOX
from trainer.training.wire import WireError, decode_command
from trainer.training.yolo.ddp import RankCrashed

if TYPE_CHECKING:
    from trainer.training.yolo.post_training import Step
    from trainer.training.yolo.train import Training

FLUSH_SECONDS = 10.0  # for the last events to be taken
PLOT_SECONDS = 60.0  # for pictures that are still being drawn
_TRACEBACK = 8000  # characters
# what Ultralytics imports only once it trains; a spare has the time, and nobody else loses any
LATER = (
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "torchvision.transforms",
    "matplotlib.pyplot",
    "polars",
    "thop",
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Carry out one order from stdin."""
    parser = argparse.ArgumentParser(prog="trainer.training.child.main")
    parser.add_argument("--events-fd", type=int, required=True)
    fd = parser.parse_args(argv).events_fd
    os.set_inheritable(fd, False)
    refuse_network()
    stop = StopSignal()
    commands = Commands(take_stdin(), stop)
    is_spare = "CUDA_VISIBLE_DEVICES" not in os.environ
    prepared = _prepare() if is_spare else None
    order = commands.order()
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, order.devices))
    for missing in confine(order, os.environ) if os.environ.get(SANDBOX) != "0" else ():
        print(f"This host cannot close {missing}; the training goes on without.", flush=True)  # noqa: T201 - the log
    # threads are as confined as the one that starts them
    commands.listen()
    outbox = Outbox(fd, on_broken=lambda: leave(0))
    train = prepared or _prepare()
    train(order, stop, outbox.send)
    outbox.close(FLUSH_SECONDS)
    leave(0)


def take_stdin() -> BinaryIO:
    """Standard input, for us alone.

    A process that is forked from this one, as loaders' workers are, begins by closing its `sys.stdin`: it would wait
    for ever for the lock that a thread holds while it reads.
    """
    own = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return own


class Commands:
    """What comes on stdin: first an order, then, from `listen` on, stops. Its end ends the process, at any time."""

    def __init__(self, stdin: BinaryIO, stop: StopSignal) -> None:
        self._stdin = stdin
        self._stop = stop
        self._orders: queue.Queue[TrainingOrder] = queue.Queue()
        threading.Thread(target=self._read, args=(True,), name="order", daemon=True).start()

    def order(self) -> TrainingOrder:
        """Wait for the order."""
        return self._orders.get()

    def listen(self) -> None:
        """Go on after the order."""
        threading.Thread(target=self._read, args=(False,), name="commands", daemon=True).start()

    def _read(self, until_order: bool) -> None:
        code = 2  # for a line that is not understood: whoever wrote it could not stop us either
        try:
            for line in self._stdin:
                command = decode_command(line)
                if isinstance(command, StopReason):
                    self._stop.set(command)
                else:
                    self._orders.put(command)
                    if until_order:
                        return
            code = 0  # nobody is left who could want the result
        except WireError as error:
            print(f"WireError: {error}", file=sys.stderr)  # noqa: T201 - stderr is the run's log
        leave(code)


def _prepare() -> Callable[[TrainingOrder, StopSignal, Callable[[Event], None]], None]:
    try:
        from trainer.training.yolo.patches import isolate  # imports torch: only after stdin is listened to
        from trainer.training.yolo.train import Training

        isolate()
        for name in LATER:
            importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken installation has to be told like any other failure
        crash = replace(crash_of(error, Phase.STARTING), is_installation=True)
        return lambda _order, _stop, send: send(crash)
    return lambda order, stop, send: carry_out(Training(order, stop, send), send)


def carry_out(training: Training, send: Callable[[Event], None]) -> None:
    """Train, and say how it ended, whatever happens."""
    try:
        _train(training, send)
        for step in training.finishing_steps():
            _try(step, training, send)
        _join_plots()
        send(training.finished())
    except Stopped:
        send(ChildStopped())
    except Exception as error:  # noqa: BLE001 - the top of the child: every failure becomes an event
        send(crash_of(error, training.phase))


def _train(training: Training, send: Callable[[Event], None]) -> None:
    """Train; what fails after the last epoch is a warning as long as the weights are there."""
    try:
        training.train()
    except Stopped:
        raise
    except Exception as error:
        if not training.is_trained:
            raise
        training.rescue()
        _warn("The final validation", error, send)


def _try(step: Step, training: Training, send: Callable[[Event], None]) -> None:
    try:
        training.add_to_report(step.do())
    except Stopped:
        raise
    except Exception as error:  # noqa: BLE001 - a model without an export is better than no model
        _warn(f"The {step.name}", error, send)


def _warn(what: str, error: Exception, send: Callable[[Event], None]) -> None:
    traceback.print_exception(error)  # into the run's log
    message = f"{what} failed, the model is kept: {type(error).__name__}: {error}"
    send(Warned(code="finalization_failed", message=message))


def crash_of(error: Exception, phase: Phase) -> Crashed:
    """The last word about an exception, whose traceback goes into the run's log."""
    if isinstance(error, RankCrashed):
        return error.event
    traceback.print_exception(error)
    text = "".join(traceback.format_exception(error))
    return Crashed(error=type(error).__name__, message=str(error), traceback=text[-_TRACEBACK:], phase=phase)


def _join_plots() -> None:
    """Wait for the threads in which Ultralytics draws pictures, so that none is published half."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(PLOT_SECONDS)


def leave(code: int) -> NoReturn:
    """End at once: no destructor may hang, no loader's worker stay."""
    for worker in multiprocessing.active_children():
        worker.kill()
    with contextlib.suppress(OSError):  # nobody may be left to read it
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
