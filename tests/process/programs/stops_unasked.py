"""Reports that it stopped without a stop request."""

from speaking import order, phase, send

order()
phase("training")
send(kind="stopped")
