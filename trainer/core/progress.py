"""The progress of a run: computes `results.progress` and `results.metrics` of the row from events."""

from __future__ import annotations

import threading
from dataclasses import replace

from trainer.core.events import BatchProgress, EpochFinished, Event, Phase, PhaseStarted, TransferProgress
from trainer.core.job import JsonObject


class Progress:
    """The progress of one attempt. `percent` never decreases, even if an epoch is repeated. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase = Phase.PREPARING
        self._epoch = 0  # the current epoch, 1-based; 0 before the first
        self._total = 0
        self._done = 0.0  # number of finished epochs plus the fraction of the current epoch
        self._percent = 0.0
        self._eta: float | None = None
        self._metrics: dict[str, float] = {}
        self._transfer: TransferProgress | None = None
        self._batch: BatchProgress | None = None

    def expect(self, total_epochs: int, done_epochs: int = 0) -> None:
        """Set the total number of epochs, and the number of epochs from earlier attempts."""
        with self._lock:
            self._total, self._epoch, self._done = total_epochs, done_epochs, float(done_epochs)

    def follow(self, event: Event) -> None:
        """Update the progress from an event."""
        with self._lock:
            match event:
                case PhaseStarted():
                    self._phase, self._transfer = event.phase, None
                    if event.phase not in (Phase.TRAINING, Phase.VALIDATING):
                        self._batch = None
                case TransferProgress():
                    self._transfer, self._eta = event, event.eta_seconds
                case BatchProgress(phase=Phase.TRAINING):
                    self._at(event.epoch, event.total_epochs, event.eta_seconds)
                    self._done = event.epoch - 1 + event.batch / max(event.total_batches, 1)
                    self._batch = event
                case BatchProgress():
                    # if the validation reports no losses, keep the losses of the training
                    self._batch = replace(event, losses=event.losses or (self._batch.losses if self._batch else {}))
                    self._at(event.epoch, event.total_epochs, event.eta_seconds)
                case EpochFinished():
                    self._at(event.epoch, event.total_epochs, event.eta_seconds)
                    self._done = event.epoch
                    self._metrics = {**event.metrics, "epoch": event.epoch}
                case _:
                    return
            self._percent = max(self._percent, min(100.0, 100.0 * self._done / max(self._total, 1)))

    def _at(self, epoch: int, total: int, eta: float | None) -> None:
        self._epoch, self._total, self._eta = min(epoch, total), total, eta

    def as_json(self) -> JsonObject:
        """Return `{"progress": …}`, with `metrics` after the first epoch. The queue merges it into `results`."""
        with self._lock:
            progress: JsonObject = {
                "phase": self._phase.value,
                "epoch": self._epoch,
                "total_epochs": self._total,
                "percent": round(self._percent, 1),
                "eta_seconds": None if self._eta is None else round(self._eta),
                "eta": clock(self._eta),
            }
            if self._transfer:
                sizes = ("files", "total_files", "bytes", "total_bytes")
                progress["transfer"] = {name: getattr(self._transfer, name) for name in sizes}
                progress["transfer"]["bytes_per_second"] = round(self._transfer.rate)
            if self._batch:
                tick = self._batch
                progress |= {"batch": tick.batch, "total_batches": tick.total_batches}
                optional = {
                    "losses": dict(tick.losses),
                    "images_per_second": tick.images_per_second,
                    "gpu_memory": tick.gpu_memory,
                }
                progress |= {name: value for name, value in optional.items() if value}
            return {"progress": progress, **({"metrics": self._metrics} if self._metrics else {})}

    def finished(self) -> JsonObject:
        """Return the progress of a completed run."""
        with self._lock:
            self._transfer = self._batch = None
        done: JsonObject = self.as_json()["progress"]
        return {**done, "phase": "completed", "percent": 100.0, "eta_seconds": 0, "eta": clock(0)}


def clock(seconds: float | None) -> str | None:
    """Return a number of seconds as `HH:MM:SS`, the format of the web app. The hours can be more than 99."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
