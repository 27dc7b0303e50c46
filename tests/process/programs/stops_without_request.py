"""Reports that it has stopped, although it got no stop request."""

from protocol import order, phase, send

order()
phase("training")
send(kind="stopped")
