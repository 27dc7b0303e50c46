"""A training process in the real sandbox that attacks the files of its run.

It trains like tests/process/programs/trains_quickly.py. These options of `behavior.json` are Python code:

    with_epoch      executed after each epoch; `epoch` is its number
    at_end          executed after the weights are written, and before the final event, which describes these weights

The code can use `output` (the folder of the training), `run` (the folder of the run) and `training` (this object).
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "process" / "programs"))

from trains_quickly import Quick, described

from trainer.training.child.confinement import confine
from trainer.training.wire import SANDBOX, decode_command


class Attack(Quick):
    def enter_sandbox(self):
        """Read the training order and enter the sandbox, before any thread starts."""
        line = sys.stdin.readline()
        self.order = json.loads(line)
        self.behavior = self.read_behavior(self.order)
        if os.environ.get(SANDBOX) != "0":
            missing = confine(decode_command(line.encode()), os.environ)
            assert not missing, missing
        self.ordered.set()

    def train_epoch(self, epoch):
        super().train_epoch(epoch)
        self.execute("with_epoch", epoch=epoch)

    def finish(self, done):
        weights = self.run_dir / "weights"
        for name in ("best.pt", "last.pt"):
            (weights / name).write_bytes(b"weights of " + name.encode())
        final = {name: described(weights / f"{name}.pt") for name in ("best", "last")}
        self.execute("at_end", final=final)
        self.send(kind="finished", report={"epochs_completed": done}, **final)

    def execute(self, option, **names):
        code = self.option(option, "")
        exec(
            code, {"output": self.run_dir, "run": self.run_dir.parent, "training": self, "os": os, "Path": Path} | names
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--behavior")
    parser.add_argument("--events-fd", type=int, required=True)
    arguments = parser.parse_args()
    attack = Attack(arguments.events_fd, arguments.behavior)
    attack.enter_sandbox()
    attack.main()
