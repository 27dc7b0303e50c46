"""The fake training (tests/process/programs/trains_quickly.py) with more options, also for single runs.

runs              {}   run ID → options for this run only
memory_mib        0    MiB of memory to allocate in each epoch
seconds_to_stop   0    seconds between a stop request and the last event
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "process" / "programs"))

from trains_quickly import Quick, StopRequested

RUN_ID = slice(len("train_"), len("train_") + 36)


class FakeTraining(Quick):
    def read_behavior(self, order):
        behavior = super().read_behavior(order)
        return behavior | behavior.get("runs", {}).get(Path(order["run_dir"]).parent.name[RUN_ID], {})

    def train_epoch(self, epoch):
        self.memory = b"." * (self.option("memory_mib", 0) << 20)
        super().train_epoch(epoch)

    def pause(self, seconds):
        try:
            super().pause(seconds)
        except StopRequested:
            time.sleep(self.option("seconds_to_stop", 0))
            raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--behavior")
    parser.add_argument("--events-fd", type=int, required=True)
    arguments = parser.parse_args()
    FakeTraining(arguments.events_fd, arguments.behavior).main()
