"""One rank of a training on several GPUs: `python -m trainer.training.child.ddp_rank FOLDER` (see yolo/ddp.py).

The training process starts each rank through torch's launcher. A rank inherits the sandbox.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer.core.events import ChildStopped, Event, Warned
from trainer.core.stop import Stopped, StopSignal
from trainer.sandbox.audit_hook import refuse_network
from trainer.sandbox.file_attributes import copy_without_attributes
from trainer.training.child import inherited_descriptors
from trainer.training.child.event_pipe import EventWriter
from trainer.training.child.main import FLUSH_SECONDS, Commands, crash_of, leave
from trainer.training.yolo.ddp import EVENTS, ORDER, STOPS

if TYPE_CHECKING:
    from trainer.training.yolo.train import Training


def main(argv: Sequence[str]) -> NoReturn:
    """Read the training order from the folder of the ranks, and train as one rank."""
    folder, rank = Path(argv[0]), os.environ["RANK"]
    refuse_network()
    copy_without_attributes()
    stop = StopSignal()
    events = os.open(folder / EVENTS.format(rank), os.O_WRONLY)
    stops = (folder / STOPS.format(rank)).open("rb")
    commands = Commands(chain([(folder / ORDER).read_bytes()], stops), stop)
    writer = EventWriter(events, on_broken=lambda: leave(0))
    order = commands.order()
    commands.listen()
    # these modules import torch, so they are imported after the start of the command thread
    from trainer.training.yolo.patches import isolate
    from trainer.training.yolo.train import Training

    isolate()
    inherited_descriptors.install()
    is_first = rank == "0"
    # rank 0 obeys stop requests and reports for all ranks
    training = Training(order, stop, writer.send) if is_first else Training(order, StopSignal(), lambda _: None)
    code = carry_out(training, writer.send, reports=is_first)
    writer.close(FLUSH_SECONDS)
    leave(code)


def carry_out(training: Training, send: Callable[[Event], None], *, reports: bool) -> int:
    """Train, and return the exit code: torch's launcher ends the other ranks if the code is not 0."""
    try:
        training.train()
    except Stopped:
        send(ChildStopped())
        return 0
    except Exception as error:  # noqa: BLE001 - top level of a process: every failure becomes an event
        crash = crash_of(error, training.phase)
        if not training.is_trained:
            send(crash)
            return 1
        if reports:
            message = f"A step after the last epoch failed: {crash.error}: {crash.message}"
            send(Warned(code="finalization_failed", message=message))
    if reports:
        send(training.trained())
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
