"""Reports a crash when it gets a stop request."""

import sys

from protocol import order, phase, send

order()
phase("training")
sys.stdin.readline()
send(kind="crashed", error="KeyError", message="'gone'", traceback="", phase="training")
