"""The training process with loader workers, as on a GPU. On a CPU, Ultralytics uses no loader workers.

It prints the number of loader workers, and the number of files that additional processes stored before the first batch.
"""

import multiprocessing
import sys
from pathlib import Path

from ultralytics.engine.trainer import BaseTrainer

from trainer.training.child import main

do_train = BaseTrainer._do_train


def train_with_workers(self):
    self.args.workers = 2
    self.add_callback("on_train_start", print_counts)
    do_train(self)


def print_counts(trainer):
    for process in multiprocessing.active_children():
        if process.name.startswith("pixels-"):
            process.join(60)
    stored = len(list(Path(trainer.data["path"], "pixels").rglob("*.npy")))
    print(f"WORKERS {trainer.train_loader.num_workers} STORED {stored}", flush=True)


BaseTrainer._do_train = train_with_workers
main.main(sys.argv[1:])
