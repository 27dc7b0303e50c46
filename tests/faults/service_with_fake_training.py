"""trainer_service.py with `fake_training.py` instead of the training process.

The behavior of the trainings is in TRAINER_HOME/behavior.json, which each training reads. TRAINER_HOME/clock.txt
contains the seconds that are added to the wall clock of this process. The file is read at each use of the clock.
SWEEP_SECONDS is the interval of the housekeeping.
"""

import datetime as dt
import functools
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ["TRAINER_HOME"])
CHILD = ROOT / "tests" / "faults" / "fake_training.py"
CLOCK = HOME / "clock.txt"


def change_the_wall_clock():
    true_time, true_datetime = time.time, dt.datetime

    def moved_time():
        return true_time() + float(CLOCK.read_text())

    class MovedDatetime(true_datetime):
        @classmethod
        def now(cls, tz=None):
            return true_datetime.fromtimestamp(moved_time(), tz)

    time.time, dt.datetime = moved_time, MovedDatetime


if CLOCK.exists():
    change_the_wall_clock()

sys.path.insert(0, str(ROOT))

from trainer import cli  # noqa: E402
from trainer.training.supervisor import process  # noqa: E402
from trainer.wiring import host as wiring_host  # noqa: E402
from trainer.worker import housekeeping  # noqa: E402

program = (sys.executable, str(CHILD), "--behavior", str(HOME / "behavior.json"))
wiring_host.ChildTrainer = functools.partial(process.ChildTrainer, program=program)
process.make_font_list = lambda *_: None  # no training draws a plot

housekeeping.EVERY = float(os.environ.get("SWEEP_SECONDS", housekeeping.EVERY))

if __name__ == "__main__":
    cli.main()
