"""Allocates memory until it reaches a limit of 300 MiB, which protects the host, and reports the MemoryError."""

import resource
import traceback

from protocol import order, phase, send

order()
phase("training")
resource.setrlimit(resource.RLIMIT_AS, (300 * 2**20, 300 * 2**20))
blocks = []
try:
    while True:
        blocks.append(bytearray(10 * 2**20))
except MemoryError as error:
    blocks.clear()
    send(
        kind="crashed",
        error=type(error).__name__,
        message=str(error),
        traceback=traceback.format_exc(),
        phase="training",
    )
