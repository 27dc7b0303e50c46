"""Runs a program as a systemd unit would: `runs_under_unit.py UNIT PROGRAM ARGUMENT…`.

The program has the filter of `SystemCallFilter` and `SystemCallErrorNumber=EPERM`, and no capability. This script needs
systemd-analyze, which knows the sets of system calls, and libseccomp, which knows their numbers.
"""

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

_PR_CAPBSET_DROP = 24
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


def system_calls(unit):
    """Return the names of the system calls that the unit allows."""
    allowed = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", Path(unit).read_text(), re.MULTILINE):
        names = {call for name in line.lstrip("~").split() for call in _calls_in(name)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def _calls_in(name):
    if not name.startswith("@"):
        return {name}
    command = ["systemd-analyze", "syscall-filter", name]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    members = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return {call for member in members for call in _calls_in(member)}


def restrict(allowed):
    """Refuse all other system calls from now on."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_REFUSE)))
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            library.seccomp_rule_add(rules, ctypes.c_uint32(_ALLOW), number, 0)
    if library.seccomp_load(rules):
        sys.exit("error: the filter cannot be loaded")


def drop_capabilities():
    """Root has no capability after the next exec. Another user cannot do this, and has none in any case."""
    for capability in range(64):
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


if __name__ == "__main__":
    drop_capabilities()
    restrict(system_calls(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
