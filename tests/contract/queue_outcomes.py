"""The outcomes that the queue tests report."""

from queue_adapters import key_of

from trainer.core.job import Canceled, Checkpoint, Completed, Failed, Interrupted, Retry

DONE = Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt")
OUTCOMES = {
    "completed": DONE,
    "failed": Failed(message="No labels."),
    "canceled": Canceled(),
    "retry": Retry(message="The disk is full."),
    "interrupted": Interrupted(checkpoint=None),
}
TERMINAL = ("completed", "failed", "canceled")


def stored_for(lease):
    return Checkpoint(epoch=7, sha256="cd" * 32, bytes=77, key=key_of(lease, 7))


def kinds(lab, run_id):
    return [row.kind for row in lab.queue.events(run_id)]
