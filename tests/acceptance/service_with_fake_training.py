"""trainer_service.py with a fake training (tests/process/programs/trains_quickly.py) instead of the training process.

The options of the fake training are in TRAINER_HOME/behavior.json, which each training reads. FAKE_TRAINING is
the name of another fake training. PRETENDED_GPUS is the number of fake GPUs, with 24 GiB each. SWEEP_SECONDS is the
interval of the housekeeping.
"""

import functools
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from trainer import cli, host  # noqa: E402
from trainer.training.supervisor import process  # noqa: E402
from trainer.wiring import host as wiring_host  # noqa: E402
from trainer.worker import housekeeping  # noqa: E402

FAKE_TRAINING = ROOT / "tests" / "process" / "programs" / os.environ.get("FAKE_TRAINING", "trains_quickly.py")

BEHAVIOR = Path(os.environ["TRAINER_HOME"]) / "behavior.json"

program = (sys.executable, str(FAKE_TRAINING), "--behavior", str(BEHAVIOR))
wiring_host.ChildTrainer = functools.partial(process.ChildTrainer, program=program)
process.make_font_list = lambda *_: None  # no training draws a plot

if pretended := int(os.environ.get("PRETENDED_GPUS", "0")):
    gpus = [host.Gpu(index=i, name="Pretended", memory=24 * 2**30, driver="1") for i in range(pretended)]
    host.gpus = lambda: tuple(gpus)
    host.ASK_DRIVER = f"print({len(gpus)})"

housekeeping.EVERY = float(os.environ.get("SWEEP_SECONDS", housekeeping.EVERY))

if __name__ == "__main__":
    cli.main()
