"""Sends megabytes without a newline, and then a valid result."""

from protocol import finished, order, phase, say

order()
phase("training")
for _ in range(10):
    say(b"\xaa" * 2**20)
say(b"\n")
finished(fine=True)
