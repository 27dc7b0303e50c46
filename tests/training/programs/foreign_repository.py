"""The training process inside a foreign git repository (`GIT_ROOT`) and with telemetry installed.

The process prints the programs that it starts.
"""

import os
import sys
from pathlib import Path

import ultralytics.utils
import ultralytics.utils.events
from ultralytics.utils.git import GitRepo

from trainer.training.child import main

repository = GitRepo(Path(os.environ["GIT_ROOT"]))
assert repository.origin, "the repository does not exist"
ultralytics.utils.GIT.__dict__.update(repository.__dict__)
ultralytics.utils.events.callbacks["on_train_start"] = lambda _trainer: print("TELEMETRY", flush=True)
sys.addaudithook(lambda event, args: print(f"AUDIT {args}", flush=True) if event == "subprocess.Popen" else None)
main.main(sys.argv[1:])
