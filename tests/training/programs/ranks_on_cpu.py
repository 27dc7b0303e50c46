"""The training process without a GPU: its ranks train on the CPU over gloo, which Ultralytics does not support.

With --events-fd, the program is the training process, otherwise a rank. A file `fault` in the run folder makes a
rank fail once, in its second epoch: "1 crash", "1 memory", or "1 9" for signal 9.
"""

import functools
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

# as for a prestarted process: imports before the sandbox is entered start no thread
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import torch
from torch import distributed as dist
from ultralytics.engine.trainer import BaseTrainer

from trainer.training.child import ddp_rank, main
from trainer.training.yolo import ddp, train_arguments

ddp.PROGRAM = (sys.executable, __file__)
train_arguments._device = lambda order: "cpu"
do_train, wrap, reduce = BaseTrainer._do_train, torch.nn.parallel.DistributedDataParallel, dist.reduce


def train_as_rank(self):
    if "RANK" in os.environ:
        self.world_size = int(os.environ["WORLD_SIZE"])
        self.add_callback("on_train_batch_start", fail_once)
        print(f"rank {os.environ['RANK']} of {self.world_size} trains", flush=True)
    do_train(self)


def reduce_mean(tensor, dst, op):
    """Compute the mean, which gloo does not support."""
    reduce(tensor, dst, dist.ReduceOp.SUM)
    if dist.get_rank() == dst:
        tensor /= dist.get_world_size()


def fail_once(trainer):
    path = Path(trainer.save_dir) / "fault"
    which, _, what = path.read_text().partition(" ") if path.exists() else ("", "", "")
    if os.environ["RANK"] != which or trainer.epoch < 1:
        return
    path.unlink()
    deadline = time.monotonic() + 20
    while not list((path.parent / "checkpoints").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)  # meanwhile rank 0 saves the checkpoint of its first epoch
    print(f"rank {which}: {what}", flush=True)
    if what == "crash":
        raise ValueError("second rank failed on purpose")
    if what == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    os.kill(os.getpid(), int(what))


BaseTrainer._do_train = train_as_rank
BaseTrainer._setup_ddp = lambda self: dist.init_process_group("gloo", timeout=timedelta(seconds=60))
torch.nn.parallel.DistributedDataParallel = functools.wraps(wrap)(
    lambda model, device_ids, **settings: wrap(model, **settings)
)
dist.reduce = reduce_mean

if __name__ == "__main__":
    torch.set_num_threads(1)
    as_child = "--events-fd" in sys.argv
    print("the training process starts" if as_child else f"rank {os.environ['RANK']} starts", flush=True)
    main.main(sys.argv[sys.argv.index("--events-fd") :]) if as_child else ddp_rank.main(sys.argv[1:])
