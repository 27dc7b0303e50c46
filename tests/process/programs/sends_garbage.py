"""Writes 10 MiB without a newline to the event pipe, and then sends a valid result."""

from protocol import finished, order, phase, write

order()
phase("training")
for _ in range(10):
    write(b"\xaa" * 2**20)
write(b"\n")
finished(fine=True)
