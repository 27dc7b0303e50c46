"""Reports that it stopped without a stop request."""

from protocol import order, phase, send

order()
phase("training")
send(kind="stopped")
