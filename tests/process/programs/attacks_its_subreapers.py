"""Starts daemons, attacks both subreapers, and sends its result.

Arguments: a file for the PIDs of the daemons, and the attack: a limit (nofile, as, data, nproc), or a signal for both.
"""

import os
import resource
import signal
import sys
import time

from protocol import finished, order, phase


def parent_of(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[1])


def daemon():
    """Start a daemon: a process in its own session, without its parent and its descriptors."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(writing, str(os.getpid()).encode())
        os.closerange(0, 256)
        time.sleep(30)
        os._exit(0)
    os.wait()
    return int(os.read(reading, 16))


order()
phase("training")
pids = [daemon() for _ in range(3)]
with open(sys.argv[1] + ".new", "w") as file:
    file.write(" ".join(map(str, pids)))
os.replace(sys.argv[1] + ".new", sys.argv[1])
second = os.getppid()
subreapers = parent_of(second), second
# a suspended subreaper does not react to the end of the other one
numbers = {"SIGSTOP": [signal.SIGSTOP], "SIGKILL": [signal.SIGSTOP, signal.SIGKILL]}.get(sys.argv[2], [])
for number in numbers:
    for subreaper in subreapers:
        os.kill(subreaper, number)
if not numbers:
    limit = {"nofile": 3, "as": 4096, "data": 4096, "nproc": 1}[sys.argv[2]]
    for subreaper in subreapers:
        resource.prlimit(subreaper, getattr(resource, f"RLIMIT_{sys.argv[2].upper()}"), (limit, limit))
finished()
