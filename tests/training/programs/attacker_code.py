"""A training that runs the code of an attacker, as after an exploit of an image decoder.

The code runs in the main thread, in a loader worker, and in the thread that reads stop requests. In each of these
places, the code appends a line of JSON with the successful attacks to RUN_DIR/attacks.jsonl.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path

from ultralytics.data.dataset import ClassificationDataset

from trainer.training.child import main
from trainer.training.yolo.callbacks import Callbacks

OUTSIDE, PORT = Path(os.environ["OUTSIDE"]), int(os.environ["PORT"])
ATTACKS = {
    "read a secret": (OUTSIDE / "secret").read_text,
    "read the keys of the service": Path(f"/proc/{os.environ['VICTIM']}/environ").read_text,
    "write outside": lambda: (OUTSIDE / "new").write_text("x"),
    "change the secret": lambda: (OUTSIDE / "secret").write_text("x"),
    "connect": lambda: socket.create_connection(("127.0.0.1", PORT), 5).close(),
    "end the service": lambda: os.kill(int(os.environ["VICTIM"]), 9),
}
run_dir = None


def attack(where):
    succeeded = []
    for name, try_it in ATTACKS.items():
        try:
            try_it()
            succeeded.append(name)
        except OSError:
            pass
    with (run_dir / "attacks.jsonl").open("a") as file:
        file.write(json.dumps({"where": where, "succeeded": succeeded}) + "\n")


def attacking_once(function, where):
    def attacked(self, *args):
        if not (run_dir / where).exists():
            (run_dir / where).touch()
            attack(where)
        return function(self, *args)

    return attacked


def attacking_at_start(function):
    def attacked(self, trainer):
        global run_dir  # noqa: PLW0603 - a loader worker inherits it
        run_dir = trainer.save_dir
        attack("training")
        thread = next(thread for thread in threading.enumerate() if thread.name == "commands")
        assert thread.is_alive()
        return function(self, trainer)

    return attacked


def decode_and_attack(line, decode=main.decode_command):
    if run_dir:
        attack("commands")
    return decode(line)


main.decode_command = decode_and_attack
Callbacks.on_pretrain_routine_start = attacking_at_start(Callbacks.on_pretrain_routine_start)
ClassificationDataset.__getitem__ = attacking_once(ClassificationDataset.__getitem__, "loader")
main.main(sys.argv[1:])
