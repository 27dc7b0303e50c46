"""The training process, with a final validation and an export that fail. With `TRUNCATE=1`, best.pt is truncated."""

import os
import sys

from ultralytics.engine.exporter import Exporter
from ultralytics.engine.trainer import BaseTrainer

from trainer.training.child import main


def final_eval(self):
    if os.environ.get("TRUNCATE"):
        self.best.write_bytes(self.best.read_bytes()[:1000])
    raise FileNotFoundError("data.yaml does not exist")


def export(self, model=None):
    raise ModuleNotFoundError("No module named 'something'")


BaseTrainer.final_eval = final_eval
Exporter.__call__ = export
main.main(sys.argv[1:])
