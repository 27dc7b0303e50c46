"""Dies in the middle of an event."""

import os

from protocol import epoch, order, phase, say

order()
phase("training")
epoch(1)
say(b'{"kind":"finished","best":"/run/be')
os._exit(0)
