"""A worker with a training process in the real sandbox that attacks the files of its run."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

from tests.unit.worker.harness import WorkerFixture
from trainer.core.stop import StopSignal
from trainer.training.supervisor.process import ChildTrainer
from trainer.training.supervisor.training_watch import TimeLimits

PROGRAM = Path(__file__).parent / "programs" / "attacks_run_folder.py"
SECRET = b"SERVICE_KEY=of another tenant"
SECONDS = 120  # limit of each attempt; most attempts take one or two seconds

# what the process puts at `path` (after the original is removed); {secrets} has secret files and folders
REPLACEMENTS = {
    "link to secret": "path.symlink_to({secrets!r} + ('' if is_folder else '/secret'))",
    "link to environment": "path.symlink_to('/proc/self/environ')",
    "link to settings": "path.symlink_to('/proc/self/cwd/.env')",
    "link to endless device": "path.symlink_to('/dev/zero')",
    "link to itself": "path.symlink_to(path.name)",
    "pipe": "os.mkfifo(path)",
    "folder": "path.mkdir()",
    "huge sparse file": "path.touch(); os.truncate(path, 2**42)",
}
REPLACE = """
import shutil
for name in {names!r}:
    path = output / name
    is_folder = path.is_dir()
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    {replacement}
"""


class AttackedWorker(WorkerFixture):
    """A worker whose training process executes the code of `behave`."""

    def __init__(self, home, *, sandbox="required", **options):
        self.behavior = home / "behavior.json"
        self.secrets = home / "secrets"
        for name in ("secret", "weights/best.pt", "weights/last.pt", "results.csv", "epoch-00003.pt", ".env"):
            (self.secrets / name).parent.mkdir(parents=True, exist_ok=True)
            (self.secrets / name).write_bytes(SECRET)
        self.behave()
        trainer = ChildTrainer(
            environment=dict(os.environ),
            home=home / "children",
            weights=home / "models",
            program=(sys.executable, str(PROGRAM), "--behavior", str(self.behavior)),
            limits=TimeLimits(grace=1, shutdown=1, starting=20, stall=20, exit=1),
            sandbox=sandbox,
        )
        super().__init__(home, trainer=trainer, **options)

    def behave(self, **options):
        self.behavior.write_text(json.dumps(options))

    def replace(self, names, what, when="at_end"):
        code = REPLACEMENTS[what].format(secrets=str(self.secrets))
        self.behave(**{when: REPLACE.format(names=names, replacement=code)})

    def attempt(self, claim="11111111-1111-4111-8111-111111111111"):
        """Execute one attempt. Fail if it takes too long or too much memory."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        working = threading.Thread(target=lambda: self.work(self.claim(claim), StopSignal()), daemon=True)
        began = time.monotonic()
        working.start()
        working.join(SECONDS)
        assert not working.is_alive(), f"the attempt is still running after {time.monotonic() - began:.0f} s"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB

    def attempt_again(self, run_id):
        self.update_row(run_id, not_before=None)
        self.attempt("22222222-2222-4222-8222-222222222222")

    def assert_nothing_leaked(self):
        for path in (self.home / "storage").rglob("*"):
            if path.is_file():
                assert path.stat().st_size < 2**20
                assert SECRET not in path.read_bytes()
                assert b"SUPERVISOR_KEY" not in path.read_bytes()
        for path in self.secrets.rglob("*"):
            assert path.is_dir() or path.read_bytes() == SECRET, "a file outside of the run was changed"
