"""Ignores stop requests and every signal that can be ignored."""

import signal
import time

from protocol import order, phase

for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
order()
phase("training")
while True:
    time.sleep(1)
