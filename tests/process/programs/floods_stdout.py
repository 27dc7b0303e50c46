"""Prints lines, progress bars, a very long line and invalid UTF-8 as fast as possible, then sends a result."""

import os

from protocol import finished, order, phase

order()
phase("training")
os.write(1, b"first line\n")
for number in range(30):
    os.write(1, b"".join(b"line %d of a flood\n" % (number * 2000 + i) for i in range(2000)))
    os.write(2, b"".join(b"\r\x1b[K bar %d%%" % i for i in range(2000)))
    os.write(1, b"\n")
os.write(1, b"x" * 5_000_000 + b"\n")
os.write(1, b"caf\xe9 \xff\xfe\n")
os.write(1, b"last line")
finished(lines=60_000)
