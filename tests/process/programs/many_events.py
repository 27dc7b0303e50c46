"""Sends 500 epoch events and 5,000 batch events. Only batch events may be lost."""

from protocol import epoch, finished, order, phase, send

order()
phase("training")
for number in range(1, 501):
    for batch in range(1, 11):
        send(kind="batch", phase="training", epoch=number, total_epochs=500, batch=batch, total_batches=10)
    epoch(number, 500)
finished(fine=True)
