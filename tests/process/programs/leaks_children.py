"""Starts processes that keep the pipes of this program open: a child, a child in a new session, and an orphan.

The PIDs are written to the file that the first argument names. If the second argument is `wait`, this program then
sleeps for 60 s.
"""

import os
import signal
import subprocess
import sys
import time

from protocol import EVENTS, finished, order, phase

SLEEPER = f"import signal, time; [signal.signal(s, signal.SIG_IGN) for s in ({signal.SIGTERM}, {signal.SIGINT})]; time.sleep(60)"
PARENT = (
    f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', {SLEEPER!r}], start_new_session=True, "
    "pass_fds=(int(sys.argv[1]),), stdout=sys.stderr); print(p.pid)"
)

order()
phase("training")
pids = [
    subprocess.Popen([sys.executable, "-S", "-c", SLEEPER], pass_fds=(EVENTS,)).pid,
    subprocess.Popen([sys.executable, "-S", "-c", SLEEPER], pass_fds=(EVENTS,), start_new_session=True).pid,
]
# the parent of the orphan has already exited, so only a subreaper finds the orphan
command = [sys.executable, "-S", "-c", PARENT, str(EVENTS)]
orphan = subprocess.run(command, pass_fds=(EVENTS,), stdout=subprocess.PIPE, check=True)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(" ".join(map(str, [os.getpid(), *pids, int(orphan.stdout)])))
os.replace(sys.argv[1] + ".new", sys.argv[1])
phase("validating")
if sys.argv[2] == "wait":
    time.sleep(60)
finished()
os._exit(0)
