"""The cost of the sandbox, and hosts that support only a part of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.process.sandbox_host import PROJECT, needs_landlock
from trainer.sandbox import entry, landlock, seccomp
from trainer.training.child.confinement import confine

pytestmark = needs_landlock


def test_entering_sandbox_takes_less_than_20_ms(host):
    """The test measures CPU time, so that other processes on this host do not count."""
    assert min(host.execute()["milliseconds"] for _ in range(3)) < 20


def test_missing_protections_are_returned_without_error(host, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise landlock.SandboxUnavailable(38, "Function not implemented")

    monkeypatch.setattr(entry, "confine_files", refuse)
    monkeypatch.setattr(entry, "restrict_system_calls", refuse)

    files, calls = confine(host.order, host.environment)

    assert files == "files (Landlock: Function not implemented)"
    assert calls == "system calls and network (seccomp: Function not implemented)"


def test_unreadable_sample_is_not_reported_as_missing_protection(tmp_path):
    """Some network file systems change file identities, which would make a dataset unreadable."""
    (tmp_path / "needed").write_text("x")
    code = f"""
from pathlib import Path
from trainer.sandbox.landlock import AccessPolicy, SandboxUnavailable, confine_files
try:
    confine_files(AccessPolicy(read=(Path("/usr"),), samples=(Path({str(tmp_path / "needed")!r}),)), tcp=False)
except OSError as error:
    print(isinstance(error, SandboxUnavailable), error)
"""
    results = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)

    assert results.stdout == f"False [Errno 13] Permission denied: '{tmp_path / 'needed'}'\n"


def test_sockets_and_pipes_are_not_used_as_samples(tmp_path):
    """Otherwise, a dataset with such a file could not be trained on."""
    os.mkfifo(tmp_path / "pipe")
    code = f"""
import socket
from pathlib import Path
from trainer.sandbox.landlock import AccessPolicy, confine_files
folder = Path({str(tmp_path)!r})
socket.socket(socket.AF_UNIX).bind(str(folder / "socket"))
confine_files(AccessPolicy(read=(folder,), samples=(folder / "pipe", folder / "socket", folder / "none")), tcp=False)
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_sample_that_another_process_removes_is_no_missing_protection(tmp_path):
    """The folders beside the folders of the service can contain temporary files of other programs."""
    (tmp_path / "temporary").write_text("x")
    code = f"""
import os
from pathlib import Path
from trainer.sandbox import landlock
os.access = lambda path, mode: path.unlink() or True
file = Path({str(tmp_path / "temporary")!r})
landlock.confine_files(landlock.AccessPolicy(read=(Path("/usr"), file), samples=(file,)), tcp=False)
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_unknown_processor_is_reported(monkeypatch):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "vax")

    with pytest.raises(landlock.SandboxUnavailable, match="vax"):
        seccomp.restrict_system_calls(seccomp.Sockets())
