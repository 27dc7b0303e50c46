"""Exits in the middle of an event."""

import os

from protocol import epoch, order, phase, write

order()
phase("training")
epoch(1)
write(b'{"kind":"finished","best":"/run/be')
os._exit(0)
