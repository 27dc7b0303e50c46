"""The training process: `python -m trainer.training.child.main --events-fd N`. It trains once and exits.

It reads the training order and stop requests from stdin and writes events to descriptor N (see wire.py). A prestarted
process, which starts without CUDA_VISIBLE_DEVICES, imports the slow packages before its training order arrives. When
its training order has arrived, a process enters the sandbox (confinement.py). Only then does it open the dataset and
the model.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import multiprocessing
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from trainer.core.events import ChildStopped, Crashed, Event, Phase, Warned
from trainer.core.job import JsonObject
from trainer.core.ports import TrainingOrder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.sandbox.audit_hook import refuse_network
from trainer.sandbox.file_attributes import copy_without_attributes
from trainer.sandbox.landlock import other_threads
from trainer.training.child import inherited_descriptors
from trainer.training.child.confinement import enter_sandbox
from trainer.training.child.event_pipe import EventWriter
from trainer.training.wire import WireError, decode_command
from trainer.training.yolo.ddp import RankCrashed

if TYPE_CHECKING:
    from trainer.training.yolo.train import Training

FLUSH_SECONDS = 10.0  # time to write the last events
PLOT_SECONDS = 60.0  # time to finish each plot
_TRACEBACK = 8000  # characters
# Packages that Ultralytics imports only when it trains; a prestarted process imports them while it waits. Polars is not
# one of them, because it starts threads, and the sandbox does not restrict earlier threads.
LATE_IMPORTS = (
    "torch._dynamo", "torch._inductor", "torch.onnx", "torchvision.transforms", "matplotlib.pyplot", "thop",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Execute the training order from stdin."""
    parser = argparse.ArgumentParser(prog="trainer.training.child.main")
    parser.add_argument("--events-fd", type=int, required=True)
    fd = parser.parse_args(argv).events_fd
    os.set_inheritable(fd, False)
    refuse_network()
    copy_without_attributes()
    stop = StopSignal()
    commands = Commands(take_stdin(), stop)
    prepared = None if "CUDA_VISIBLE_DEVICES" in os.environ else _prepare()
    order = commands.order()
    if prepared and other_threads():
        leave(0)  # the supervisor starts a new process, which enters the sandbox before its imports
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, order.devices))
    enter_sandbox(order, os.environ, fd)
    # only threads that start after `enter_sandbox` are in the sandbox
    commands.listen()
    writer = EventWriter(fd, on_broken=lambda: leave(0))
    train = prepared or _prepare()
    train(order, stop, writer.send)
    writer.close(FLUSH_SECONDS)
    leave(0)


def take_stdin() -> BinaryIO:
    """Return a copy of standard input, and make `sys.stdin` empty.

    A forked process (a worker of a data loader) first closes its `sys.stdin`. If a thread of this process read from
    `sys.stdin`, it would hold the lock of this file object, and the forked process would deadlock.
    """
    own = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as null:  # noqa: PTH123
        os.dup2(null.fileno(), 0)
    return own


class Commands:
    """Reads commands: first the training order, then, after `listen`, stop requests. End of file ends the process."""

    def __init__(self, lines: Iterable[bytes], stop: StopSignal) -> None:
        self._lines = iter(lines)
        self._stop = stop
        self._orders: queue.Queue[TrainingOrder] = queue.Queue()
        threading.Thread(target=self._read, args=(True,), name="order", daemon=True).start()

    def order(self) -> TrainingOrder:
        """Wait for the training order and return it."""
        return self._orders.get()

    def listen(self) -> None:
        """Read stop requests from now on."""
        threading.Thread(target=self._read, args=(False,), name="commands", daemon=True).start()

    def _read(self, until_order: bool) -> None:
        code = 2  # exit code after an invalid line: a supervisor with another protocol could not stop the training
        try:
            for line in self._lines:
                command = decode_command(line)
                if isinstance(command, StopReason):
                    self._stop.set(command)
                else:
                    self._orders.put(command)
                    if until_order:
                        return
            code = 0  # end of file: no supervisor needs the result
        except WireError as error:
            print(f"WireError: {error}", file=sys.stderr)  # noqa: T201 - stderr goes to the run's log
        leave(code)


def _prepare() -> Callable[[TrainingOrder, StopSignal, Callable[[Event], None]], None]:
    try:
        # these modules import torch, so they are imported after the start of the thread that reads stdin
        from trainer.training.yolo.gpu_test import use_gpus
        from trainer.training.yolo.patches import isolate
        from trainer.training.yolo.train import Training

        isolate()
        inherited_descriptors.install()
        for name in LATE_IMPORTS:
            importlib.import_module(name)
        # the imported objects stay until the end, so no garbage collection during the training has to traverse them
        gc.freeze()
    except Exception as error:  # noqa: BLE001 - a broken installation is reported like any other failure
        crash = replace(crash_of(error, Phase.STARTING), is_installation=True)
        return lambda _order, _stop, send: send(crash)

    def carry_out_order(order: TrainingOrder, stop: StopSignal, send: Callable[[Event], None]) -> None:
        if order.is_test:
            _test(lambda: use_gpus(len(order.devices)), send)
        else:
            carry_out(Training(order, stop, send), send)

    return carry_out_order


def _test(use_gpus: Callable[[], None], send: Callable[[Event], None]) -> None:
    try:
        use_gpus()
        send(ChildStopped())
    except Exception as error:  # noqa: BLE001 - the supervisor decides what each failure means
        send(crash_of(error, Phase.STARTING))


def carry_out(training: Training, send: Callable[[Event], None]) -> None:
    """Train, and send the final event in every case."""
    try:
        _train(training, send)
        for name, step in training.post_training_steps():
            _run_step(name, step, training, send)
        _join_plots()
        send(training.finished())
    except Stopped:
        send(ChildStopped())
    except Exception as error:  # noqa: BLE001 - top level of the process: every failure becomes an event
        send(crash_of(error, training.phase))


def _train(training: Training, send: Callable[[Event], None]) -> None:
    """Train. A failure after the last epoch becomes a warning if the weights can be restored."""
    try:
        training.train()
    except Stopped:
        raise
    except Exception as error:
        if not training.is_trained:
            raise
        training.recover_weights()
        _warn("The final validation", error, send)


def _run_step(name: str, step: Callable[[], JsonObject], training: Training, send: Callable[[Event], None]) -> None:
    try:
        training.report |= step()
    except Stopped:
        raise
    except Exception as error:  # noqa: BLE001 - the model is kept even if an export fails
        _warn(f"The {name}", error, send)


def _warn(what: str, error: Exception, send: Callable[[Event], None]) -> None:
    traceback.print_exception(error)  # the output goes to the run's log
    message = f"{what} failed; the model is not affected: {type(error).__name__}: {error}"
    send(Warned(code="finalization_failed", message=message))


def crash_of(error: Exception, phase: Phase) -> Crashed:
    """Return the final event for an exception, and print its traceback into the run's log."""
    if isinstance(error, RankCrashed):
        return error.event
    traceback.print_exception(error)
    text = "".join(traceback.format_exception(error))
    return Crashed(error=type(error).__name__, message=str(error), traceback=text[-_TRACEBACK:], phase=phase)


def _join_plots() -> None:
    """Wait for the threads in which Ultralytics draws plots, so that no unfinished plot is published."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(PLOT_SECONDS)


def leave(code: int) -> NoReturn:
    """Exit at once. Kill the loader workers, and skip destructors, which can hang."""
    for worker in multiprocessing.active_children():
        worker.kill()
    with contextlib.suppress(OSError):  # the reader may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
