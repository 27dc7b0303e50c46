"""One process of several that train together: `python -m trainer.training.child.ddp_rank SOCKET` (see ranks.py).

It is started by torch's launcher below the child, and is as confined as that.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from trainer.core.events import ChildStopped, Event, Warned
from trainer.core.stop import Stopped, StopSignal
from trainer.training.child.event_pipe import Outbox
from trainer.training.child.main import FLUSH_SECONDS, Commands, crash_of, leave
from trainer.training.sandbox.audit_hook import refuse_network

if TYPE_CHECKING:
    from trainer.training.yolo.train import Training


def main(argv: Sequence[str]) -> NoReturn:
    """Train one share of the order that comes over the socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(argv[0])
    refuse_network()
    heard = StopSignal()
    commands = Commands(connection.makefile("rb"), heard)
    outbox = Outbox(connection.fileno(), on_broken=lambda: leave(0))
    order = commands.order()
    commands.listen()
    from trainer.training.yolo.patches import isolate  # imports torch: only after the socket is listened to
    from trainer.training.yolo.train import Training

    isolate()
    is_first = os.environ["RANK"] == "0"
    training = Training(order, heard if is_first else StopSignal(), outbox.send if is_first else _keep_quiet)
    code = carry_out(training, outbox.send, reports=is_first)
    outbox.close(FLUSH_SECONDS)
    leave(code)


def carry_out(training: Training, send: Callable[[Event], None], *, reports: bool) -> int:
    """Train; the exit code, by which torch's launcher knows whether the other ranks have to end."""
    try:
        training.train()
    except Stopped:
        send(ChildStopped())
        return 0
    except Exception as error:  # noqa: BLE001 - the top of a process: every failure becomes an event
        crash = crash_of(error, training.phase)
        if not training.is_trained:
            send(crash)
            return 1
        if reports:
            send(Warned(code="finalization_failed", message=f"After the last epoch: {crash.error}: {crash.message}"))
    if reports:
        send(training.trained())
    return 0


def _keep_quiet(_: Event) -> None:
    """The first rank reports for all."""


if __name__ == "__main__":
    main(sys.argv[1:])
