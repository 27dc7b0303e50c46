"""Says that it stopped, though nobody asked."""

from speaking import order, phase, send

order()
phase("training")
send(kind="stopped")
