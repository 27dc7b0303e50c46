"""The training process of a model whose loss is NaN in the batches that `NAN_IN` lists."""

import itertools
import os
import sys

from ultralytics.nn.tasks import BaseModel

from trainer.training.child import main

failing = {int(number) for number in os.environ["NAN_IN"].split(",")}
calls = itertools.count(1)
loss = BaseModel.loss


def diverging(self, batch, preds=None):
    total, items = loss(self, batch, preds)
    if self.training and next(calls) in failing:
        total = total * float("nan")
    return total, items


BaseModel.loss = diverging
main.main(sys.argv[1:])
