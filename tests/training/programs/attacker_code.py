"""A training that runs an attacker's code, as after an exploit of an image decoder.

The code runs in the main thread, in a loader worker, and in the thread that reads stop requests. Each appends what it
could do to RUN_DIR/loot as a line of JSON.
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
WAYS = {
    "read a secret": (OUTSIDE / "secret").read_text,
    "read the keys of the service": Path(f"/proc/{os.environ['VICTIM']}/environ").read_text,
    "write outside": lambda: (OUTSIDE / "new").write_text("x"),
    "change the secret": lambda: (OUTSIDE / "secret").write_text("x"),
    "connect": lambda: socket.create_connection(("127.0.0.1", PORT), 5).close(),
    "end the service": lambda: os.kill(int(os.environ["VICTIM"]), 9),
}
loot = None


def attack(where):
    took = []
    for name, way in WAYS.items():
        try:
            way()
            took.append(name)
        except OSError:
            pass
    with (loot / "loot").open("a") as file:
        file.write(json.dumps({"where": where, "took": took}) + "\n")


def attacking(function, where):
    def attacked(self, *args):
        if not (loot / where).exists():
            (loot / where).touch()
            attack(where)
        return function(self, *args)

    return attacked


def taken_over(function):
    def wrapped(self, trainer):
        global loot  # noqa: PLW0603 - a loader's process inherits it
        loot = trainer.save_dir
        attack("training")
        thread = next(thread for thread in threading.enumerate() if thread.name == "commands")
        assert thread.is_alive()
        return function(self, trainer)

    return wrapped


def decoding(line, decode=main.decode_command):
    if loot:
        attack("commands")
    return decode(line)


main.decode_command = decoding
Callbacks.on_pretrain_routine_start = taken_over(Callbacks.on_pretrain_routine_start)
ClassificationDataset.__getitem__ = attacking(ClassificationDataset.__getitem__, "loader")
main.main(sys.argv[1:])
