"""The training process that runs out of memory in the forward calls that `OOM_WHEN` lists.

`train:3,4` means the third and fourth training batch, `val:1` the first batch of a validation.
"""

import os
import sys
import weakref

import torch
from ultralytics.nn.tasks import BaseModel

from trainer.training.child import main

kind, _, numbers = os.environ["OOM_WHEN"].partition(":")
failing = {int(number) for number in numbers.split(",")}
calls = {"train": 0, "val": 0}
failed = []  # the models that ran out of memory
loss = BaseModel.loss


def scarce(self, batch, preds=None):
    which = "train" if self.training else "val"
    calls[which] += 1
    freed = all(model() is None for model in failed)
    print(f"{which} {calls[which]} batch {len(batch['img'])} {'freed' if freed else 'held'}", flush=True)
    if which == kind and calls[which] in failing:
        failed.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return loss(self, batch, preds)


BaseModel.loss = scarce
main.main(sys.argv[1:])
