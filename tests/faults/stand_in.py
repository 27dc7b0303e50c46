"""trainer_service.py with `trains_as_told.py` in the training process's place.

The knobs are in TRAINER_HOME/behavior.json, read anew for each training. A number in TRAINER_HOME/clock.txt is by how
many seconds this process's wall clock is wrong, read anew whenever it asks for the time. SWEEP_SECONDS is how often the
housekeeping is done.
"""

import datetime as dt
import functools
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ["TRAINER_HOME"])
CHILD = ROOT / "tests" / "faults" / "trains_as_told.py"
CLOCK = HOME / "clock.txt"


def move_the_wall_clock():
    honest, right = time.time, dt.datetime

    def moved():
        return honest() + float(CLOCK.read_text())

    class Moved(right):
        @classmethod
        def now(cls, tz=None):
            return right.fromtimestamp(moved(), tz)

    time.time, dt.datetime = moved, Moved


if CLOCK.exists():
    move_the_wall_clock()

sys.path.insert(0, str(ROOT))

from trainer import cli  # noqa: E402
from trainer.training.supervisor.process import ChildTrainer  # noqa: E402
from trainer.wiring import host as wiring_host  # noqa: E402
from trainer.worker import housekeeping  # noqa: E402

program = (sys.executable, str(CHILD), "--behavior", str(HOME / "behavior.json"))
wiring_host.ChildTrainer = functools.partial(ChildTrainer, program=program)

housekeeping.EVERY = float(os.environ.get("SWEEP_SECONDS", housekeeping.EVERY))

if __name__ == "__main__":
    cli.main()
