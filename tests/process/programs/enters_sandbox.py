"""Enters the sandbox like the real training process, then sends a result.

`{"refuse": {"NUMBER": ERRNO}}` in behavior.json: these system calls fail, as on a host without support for the sandbox.
"""

import json
import os
import sys

import protocol
from refused_calls import refuse

from trainer.training.child.confinement import enter_sandbox
from trainer.training.wire import decode_command

order = decode_command(sys.stdin.buffer.readline())
for number, error in json.loads((order.dataset.root / "behavior.json").read_text()).get("refuse", {}).items():
    refuse(int(number), error)
enter_sandbox(order, os.environ, protocol.EVENTS)
protocol.phase("training")
protocol.finished(pid=os.getpid())
