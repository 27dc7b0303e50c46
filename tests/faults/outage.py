"""F6 with real durations: the database is down for 1 s, 30 s and 10 min, with the default time limits.

    python -m tests.faults.outage 1 30 600

Two runs train when PostgreSQL stops. One run finishes during the outage, so its outcome is delivered later. The other
run trains until after the outage. The program prints a line of results for each outage, and exits with 1 if an
epoch, an event or an outcome was lost.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from tests.faults.cloud import Cloud, running_cloud, wait_for
from tests.faults.hosts import Host
from trainer.demo import draw_dataset

# settings that other tests shorten; here they have their defaults
SHORTENED = (
    "LEASE_SECONDS", "CANCEL_CHECK_INTERVAL", "HEARTBEAT_INTERVAL", "PROGRESS_INTERVAL", "POLL_INTERVAL", "CANCEL_GRACE",
    "DRAIN_SECONDS", "CHECKPOINT_INTERVAL",
)  # fmt: skip
AFTER = 12  # epochs of the longer run after the outage


class Outage:
    """An outage of `seconds`, and its effects on two runs."""

    def __init__(self, cloud: Cloud, home: Path, seconds: float) -> None:
        self.seconds = seconds
        self.lost: list[str] = []
        self._cloud = cloud
        self._epoch = max(0.25, seconds / 60)
        self._host = Host(cloud, home, {"seconds_per_epoch": self._epoch}, SLOTS=2)
        for name in SHORTENED:
            del self._host.environment[name]

    def happen(self) -> Outage:
        cloud, epochs = self._cloud, int(self.seconds / self._epoch) + 2
        self._host.start()
        try:
            short, long = cloud.enqueue(epochs=2 + epochs // 2), cloud.enqueue(epochs=epochs + AFTER)
            # the queue gets the epochs with a heartbeat, seconds later
            tables = [self._host.run_dir(run_id) / "results.csv" for run_id in (short, long)]
            wait_for(lambda: all(table.exists() and table.read_text().count("\n") > 1 for table in tables), 60)
            trainings = self._host.trainings()
            cloud.stack.postgres.stop()
            self.began = time.time()
            try:
                time.sleep(self.seconds)
                self.training_through_it = sum(training.is_running() for training in trainings)
            finally:
                cloud.stack.postgres.start()
            self.ended = time.time()
            for run_id in (short, long):
                self._check(cloud.wait(run_id, "completed", "failed", seconds=120 + AFTER * self._epoch))
            self.delivered_after = time.time() - self.ended
            self._host.wait_idle(60)
        finally:
            self._host.end()
        self.longest_gap = max(b - a for a, b in pairwise(self._finish_times(long)))
        self.epochs_during_outage = sum(
            self.began < at < self.ended for r in (short, long) for at in self._finish_times(r)
        )
        cloud.check_invariants()
        return self

    def _check(self, row) -> None:
        run_id, epochs = row["id"], row["configuration"]["epochs"]
        outcome = (row["status"], row["attempt"], row["failures"], row["error_message"])
        self._must(outcome == ("completed", 1, 0, None), f"{run_id} ended as {outcome}")
        self._must(self._cloud.epochs(run_id) == {1: list(range(1, epochs + 1))}, f"{run_id}: epochs lost or repeated")
        seqs = [event["seq"] for event in self._cloud.events(run_id) if event["seq"] < 1_000_000]
        self._must(seqs == list(range(1, len(seqs) + 1)), f"{run_id}: events lost: {seqs}")

    def _must(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.lost.append(otherwise)

    def _finish_times(self, run_id: str) -> list[float]:
        """Return the time at which the training finished each epoch, from the clock of the worker."""
        return [datetime.fromisoformat(event["at"]).timestamp() for event in self._cloud.events(run_id, "epoch")]

    def __str__(self) -> str:
        return (
            f"outage of {self.seconds:g} s: {self.training_through_it} of 2 trainings were running at the end of the outage; "
            f"{self.epochs_during_outage} epochs finished during the outage; longest time between two epochs: "
            f"{self.longest_gap:.2f} s (expected: {self._epoch:g} s); "
            f"both runs completed {self.delivered_after:.1f} s after the outage; lost: {self.lost or 'nothing'}"
        )


def main() -> int:
    lost = False
    with tempfile.TemporaryDirectory(prefix="outage-") as name:
        folder = Path(name)
        data = draw_dataset(folder / "drawn", images=6, size=32)
        with running_cloud(data) as cloud:
            for seconds in map(float, sys.argv[1:] or ["1", "30", "600"]):
                outage = Outage(cloud, folder / f"h{seconds:g}", seconds).happen()
                print(outage, flush=True)
                lost = lost or bool(outage.lost)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
