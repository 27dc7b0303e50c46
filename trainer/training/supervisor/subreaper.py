"""Stands between the supervisor and a training process, so that nothing of a training outlives either of them.

Run as a script of its own, without site-packages: `python -I -S subreaper.py LIFELINE_FD FOLDER PROGRAM ARGUMENT…`.
It forks a second guardian, which starts PROGRAM in a session of its own. Then both only wait.

- The lifeline is a socket whose other end only the supervisor holds. A byte on it means SIGTERM for the whole tree; its
  end, which also comes when the supervisor is killed, means SIGKILL for the whole tree. Only the two guardians hold
  this end, so the supervisor reads its end when nothing of the tree is left.
- When PROGRAM ends, so does everything that it started. Both guardians are subreapers: each inherits what is orphaned
  below it, whatever session, environment or name that has, and does not end before all of it is reaped.
- When one guardian is killed, the other one ends the tree. Processes can survive only if both are killed at once, and
  PROGRAM not even then: the kernel kills it with the second guardian. A parent-death signal straight from the
  supervisor would not do: it comes at the death of the thread that started the process.
- A guardian deletes FOLDER (the program's private folder) and ends the way PROGRAM ended: same exit code, same signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SECOND_SECONDS = 1.0  # that the second guardian may take to end the tree, before the first one does it
_OUR_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, children first. Without psutil, so that the guardian stays small."""
    children: dict[int, list[int]] = {}
    for process, parent in _all_processes():
        children.setdefault(parent, []).append(process)
    found = list(children.get(pid, ()))
    for process in found:
        found.extend(children.get(process, ()))
    return found


def kill_each(processes: list[int], number: signal.Signals) -> None:
    """Signal each process that is still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def _all_processes() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            # a process may end between the listing and the reading
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                # the second field is the program's name in parentheses and may hold anything
                yield int(name), int(stat.read().rpartition(b")")[2].split()[1])


def _children() -> list[int]:
    """The processes directly below.

    The list also has those that /proc hides from us (`hidepid`), and it is read so fast that a process that forks and
    ends all the time is still there when it is signaled.
    """
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children", "rb") as children:  # noqa: PTH123
        return [int(pid) for pid in children.read().split()]
    return []  # not every kernel has it


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _start(program: list[str]) -> int:
    guardian = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        for number in _OUR_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # when the host's memory runs out, better the training than its supervisor
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
            score.write("500")
        if os.getppid() == guardian:
            os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot start {program[0]}: {error}\n".encode())
    os._exit(127)


def _keep_only(*kept: int) -> None:
    # a pipe of the child's must end with the child, so no guardian holds one
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in (0, 1, 2, *kept):
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))


def _watch_second(lifeline: int, second: int) -> None:
    """Return when the second guardian has ended or has to."""
    ended = os.pidfd_open(second)
    while True:
        readable, _, _ = select.select([lifeline, ended], [], [])
        if ended in readable:
            return
        if not os.read(lifeline, 1):
            # it ends the tree and then itself, so that one of us is there until the tree has ended; unless it is stopped
            select.select([ended], [], [], _SECOND_SECONDS)
            return
        kill_each(descendants(os.getpid()), signal.SIGTERM)  # the second guardian ignores it


def _watch_program(lifeline: int, first: int, program: int) -> None:
    """Return when the program has ended or has to."""
    events = select.poll()
    events.register(lifeline, select.POLLRDHUP)  # the bytes on it are for the first guardian
    for end in (first, os.pidfd_open(program)):
        events.register(end, select.POLLIN)
    events.poll()


def _reap_all(child: int) -> int:
    """Kill and reap everything that is left; return the wait status of `child`."""
    status = 0
    pause = 0.002
    while True:
        with contextlib.suppress(ChildProcessError):
            reaped, how = os.waitpid(child, os.WNOHANG)
            status = how if reaped else status
        kill_each(_children(), signal.SIGKILL)
        kill_each(descendants(os.getpid()), signal.SIGKILL)
        try:
            while (reaped_and_how := os.waitpid(-1, os.WNOHANG))[0]:
                status = reaped_and_how[1] if reaped_and_how[0] == child else status
        except ChildProcessError:
            return status
        time.sleep(pause)  # a dying process can take its time in a driver
        pause = min(pause * 2, 0.1)


def _end_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _remove(folder: str) -> None:
    if os.path.lexists(folder):
        import shutil  # here, because it would make each start slower

        with contextlib.suppress(RecursionError):  # nested too deep on purpose: the supervisor removes it
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    lifeline, folder, program = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(lifeline, False)
    for number in _OUR_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of a training would fill the disk
    first = os.pidfd_open(os.getpid())
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    below = os.fork()
    if below:
        _keep_only(lifeline)
        _watch_second(lifeline, below)
    else:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # a fork does not inherit it
        below = _start(program)
        _keep_only(lifeline, first)
        _watch_program(lifeline, first, below)
    status = _reap_all(below)
    _remove(folder)
    _end_like(status)


if __name__ == "__main__":
    main()
