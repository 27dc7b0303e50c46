"""Starts a daemon that is hard to find, and then sleeps for 60 s.

The daemon forks, starts a session, forks again and closes inherited descriptors. Then it runs a program with another
name and an empty environment. The new program hides its /proc files, ignores signals, and writes its PID to the file that
the argument names.
"""

import os
import sys
import time

from protocol import order, phase

SLEEPER = (
    "import ctypes, os, signal, sys, time; prctl = ctypes.CDLL(None).prctl; "
    "assert prctl(15, b'kworker/0:1', 0, 0, 0) == 0; "  # PR_SET_NAME
    "assert prctl(4, 0, 0, 0, 0) == 0; "  # PR_SET_DUMPABLE
    "[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]; "
    "open(sys.argv[1] + '.new', 'w').write(str(os.getpid())); os.replace(sys.argv[1] + '.new', sys.argv[1]); time.sleep(60)"
)

order()
phase("training")
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.closerange(0, 256)
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    os.setpgid(0, 0)
    os.execve(sys.executable, [sys.executable, "-S", "-c", SLEEPER, sys.argv[1]], {})
os.wait()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
phase("validating")
time.sleep(60)
