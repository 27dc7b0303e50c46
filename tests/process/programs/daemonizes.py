"""Starts a daemon that nothing marks as ours: it forks, becomes a session of its own, forks again, closes what it inherited, and
only then runs another program, with another name and an empty environment, whose /proc files are closed and which ignores
every signal. The pid is in the file that its argument names; then it waits.
"""

import os
import sys
import time

from speaking import order, phase

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
