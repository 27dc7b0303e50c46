"""The parent of a training process: no process of a training survives the training or its supervisor.

This script runs without site-packages: `python -I -S subreaper.py LIFELINE_FD FOLDER PROGRAM ARGUMENT…`.
It forks a second subreaper, which starts PROGRAM in a new session. Then both subreapers only wait.

- The lifeline is a socket pair between the supervisor and the two subreapers; no other process holds either end. A byte
  on the lifeline means SIGTERM for the whole tree. When the supervisor closes its end or is killed, the whole tree gets
  SIGKILL. The supervisor reads end of file when no process of the tree is left.
- When PROGRAM ends, all processes that it started end, too. Each subreaper inherits the orphaned processes below it,
  with any session, environment or name. A subreaper exits after it has reaped them all.
- When one subreaper is killed, the other subreaper ends the tree. If both are killed at the same time, the kernel kills
  PROGRAM with the second subreaper, and the supervisor finds and ends the rest (orphans.py). A parent-death signal
  from the supervisor itself would not work: the kernel sends it when the thread that started the process ends.
- PROGRAM could limit the resources of its subreapers. So whatever fails, a subreaper continues until no process is left.
- Each subreaper ends with the exit code or the signal of PROGRAM. If the supervisor has ended, it first removes FOLDER, the
  private folder of PROGRAM. Otherwise the supervisor removes it: PROGRAM can create so many files that this takes minutes.
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
_SECOND_SECONDS = 1.0  # time for the second subreaper to end the tree, before the first subreaper does it
_MARK = resource.RLIMIT_MSGQUEUE  # see orphans.py
_FAILURES = (OSError, MemoryError, ImportError)  # of a process without descriptors or memory
_OUR_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)


def descendants(pid: int) -> list[int]:
    """Return the descendants of `pid`, parents before children. To keep the subreaper small, psutil is not used."""
    children: dict[int, list[int]] = {}
    for process, parent in _all_processes():
        children.setdefault(parent, []).append(process)
    found = list(children.get(pid, ()))
    for process in found:
        found.extend(children.get(process, ()))
    return found


def kill_each(processes: list[int], number: signal.Signals) -> None:
    """Send a signal to each process that still exists."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def _all_processes() -> Iterator[tuple[int, int]]:
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir("/proc")  # noqa: PTH208
    for name in names:
        if name.isdigit():
            # a process may end between listing and reading
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                # the second field is the program's name in parentheses, with any characters
                yield int(name), int(stat.read().rpartition(b")")[2].split()[1])


def _open_children() -> int | None:
    """Return the descriptor of the list of direct children of this process. Some kernels do not have this file.

    It is opened at the start, because a limit for descriptors may not allow that later.
    """
    with contextlib.suppress(OSError):
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    return None


def _children(descriptor: int | None) -> list[int]:
    """Return the direct children of this process.

    The list includes processes that /proc hides (`hidepid`). It is fast to read, so even a process that constantly
    forks and exits still exists when it gets its signal.
    """
    return [] if descriptor is None else [int(pid) for pid in os.pread(descriptor, 65536, 0).split()]


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _start(program: list[str]) -> int:
    subreaper = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        for number in _OUR_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # when the host runs out of memory, the kernel should kill the training, not its supervisor
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
            score.write("500")
        hard = resource.getrlimit(_MARK)[1]
        mark = 0 if hard == resource.RLIM_INFINITY else max(0, hard - 1)
        resource.setrlimit(_MARK, (mark, mark))
        for priority in (resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO):  # the service must not wait for a training
            resource.setrlimit(priority, (0, 0))
        if os.getppid() == subreaper:
            os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot start {program[0]}: {error}\n".encode())
    os._exit(127)


def _close_all_but(*descriptors: int | None) -> None:
    # the program's pipes must close when the program ends, so no subreaper keeps a pipe open
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in (0, 1, 2, *descriptors):
            with contextlib.suppress(OSError):  # listdir has already closed the descriptor that it used
                os.close(int(name))


def _watch_second(lifeline: int, second: int) -> None:
    """Return when the second subreaper has ended or must end."""
    while True:
        readable, _, _ = select.select([lifeline, second], [], [])
        if second in readable:
            return
        if not os.read(lifeline, 1):
            # the second subreaper ends the tree and exits; the wait is limited, because that subreaper can be suspended
            select.select([second], [], [], _SECOND_SECONDS)
            return
        kill_each(descendants(os.getpid()), signal.SIGTERM)  # the second subreaper ignores SIGTERM


def _watch_program(lifeline: int, first: int, program: int) -> None:
    """Return when the program or the first subreaper has ended, or when the program must end."""
    events = select.poll()
    events.register(lifeline, select.POLLRDHUP)  # only the first subreaper reads the bytes of the lifeline
    for end in (first, program):
        events.register(end, select.POLLIN)
    events.poll()


def _reap_all(child: int, children: int | None) -> int:
    """Kill and reap every remaining process; return the wait status of `child`."""
    status = 0
    pause = 0.002
    while True:
        with contextlib.suppress(ChildProcessError):
            reaped, how = os.waitpid(child, os.WNOHANG)
            status = how if reaped else status
        with contextlib.suppress(*_FAILURES):
            kill_each(_children(children), signal.SIGKILL)
        with contextlib.suppress(*_FAILURES):
            kill_each(descendants(os.getpid()), signal.SIGKILL)
        try:
            while (reaped_and_how := os.waitpid(-1, os.WNOHANG))[0]:
                status = reaped_and_how[1] if reaped_and_how[0] == child else status
        except ChildProcessError:
            return status
        time.sleep(pause)  # a driver can delay the end of a process
        pause = min(pause * 2, 0.1)


def _end_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _has_supervisor_ended(lifeline: int) -> bool:
    end = select.poll()
    end.register(lifeline, 0)  # POLLHUP is always reported; a supervisor that only requests the end causes POLLRDHUP
    return bool(end.poll(0))


def _remove(folder: str) -> None:
    # what is left, for example a folder that is nested too deeply, is removed by the supervisor
    with contextlib.suppress(RecursionError, *_FAILURES):
        if os.path.lexists(folder):
            import shutil  # imported here, because the import would slow down every start

            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run one of the two subreapers until the program has ended."""
    lifeline, folder, program = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(lifeline, False)
    for number in _OUR_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump of a training would fill the disk
    first = os.pidfd_open(os.getpid())
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    children = _open_children()
    if child:
        second = os.pidfd_open(child)
        _close_all_but(lifeline, children, second)
        with contextlib.suppress(*_FAILURES):
            _watch_second(lifeline, second)
    else:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # a fork does not inherit this property
        child = _start(program)
        started = os.pidfd_open(child)
        _close_all_but(lifeline, children, first, started)
        with contextlib.suppress(*_FAILURES):
            _watch_program(lifeline, first, started)
    status = _reap_all(child, children)
    if _has_supervisor_ended(lifeline):
        _remove(folder)
    _end_like(status)


if __name__ == "__main__":
    main()
