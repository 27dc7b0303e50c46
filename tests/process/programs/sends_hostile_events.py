"""Enters the sandbox of its training order, like a training. Then runs the Python code in its first argument.

The code can call `write(bytes)`, `send(**event)`, `phase(name)`, `epoch(number, total)` and `finished(**facts)`.
"""

import os
import sys

import protocol

from trainer.training.child.confinement import confine
from trainer.training.wire import decode_command

order = decode_command(sys.stdin.buffer.readline())
protocol.send(kind="sandbox", missing=confine(order, os.environ))
exec(sys.argv[1], vars(protocol))
