"""Raises an exception when it is asked to stop."""

import sys

from protocol import order, phase, send

order()
phase("training")
sys.stdin.readline()
send(kind="crashed", error="KeyError", message="'gone'", traceback="", phase="training")
