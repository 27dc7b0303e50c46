"""Publishing what an attempt made: a finished model for as long as it takes, anything else while there is time."""

from __future__ import annotations

from pathlib import Path

import structlog

from trainer.core.errors import TrainerError, Unavailable
from trainer.core.events import Finished, Phase, PhaseStarted
from trainer.core.job import JsonObject
from trainer.core.results import Artifact
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.run_folder import LAST, RunFolder
from trainer.core.stop import Stopped, StopSignal
from trainer.worker.event_sink import Record
from trainer.worker.lease import Heartbeat
from trainer.worker.publish import Publisher, WeightsChanged

log = structlog.get_logger()

# A finished model is worth waiting for: a day of a dead or misconfigured store, before the run goes back to the queue.
PUBLISH_PATIENCE = RetryPolicy(tries=100_000, first_wait=1.0, longest_wait=60.0, total_seconds=86_400)
ONE_TRY = RetryPolicy(tries=1)


class Artifacts:
    """The artifacts of one attempt. `seconds` is what an upload may still take once the run was stopped."""

    def __init__(
        self,
        publisher: Publisher,
        record: Record,
        heartbeat: Heartbeat,
        stop: StopSignal,
        seconds: float,
    ) -> None:
        self._publisher = publisher
        self._record = record
        self._heartbeat = heartbeat
        self._stop = stop
        self._seconds = seconds

    def of_finished(self, run_dir: Path, finished: Finished) -> list[Artifact]:
        """Publish a finished training. Whatever the store or the disk says is retried for `PUBLISH_PATIENCE`.

        Raises `WeightsChanged` when the model is not the one that was trained, Unavailable after that time, Stopped.
        """
        with self._stop.borrowed_time(self._seconds) as patience:
            return self._published(run_dir, PUBLISH_PATIENCE, patience, finished)

    def left_behind(self, run_dir: Path, attempt: int, *, is_last: bool) -> JsonObject:
        """Publish what exists of a training that did not finish: results that list what arrived in time. Never raises.

        Without weights there is nothing to list, because an earlier attempt may have published more; the log of a run
        that ends in its first attempt is published all the same.
        """
        has_weights = RunFolder(run_dir).last.is_file()
        artifacts = self._arrived(run_dir, is_last=is_last) if has_weights or (is_last and attempt <= 1) else []
        has_arrived = attempt <= 1 or any(artifact.name == LAST for artifact in artifacts)
        return listed(artifacts, run_dir) if artifacts and has_arrived else {}

    def _arrived(self, run_dir: Path, *, is_last: bool) -> list[Artifact]:
        """Another attempt waits unless this is the last one, so then a store gets one try, and `seconds` in all."""
        policy = RetryPolicy(total_seconds=self._seconds) if is_last else ONE_TRY
        try:
            with self._stop.borrowed_time(self._seconds, at_most=not is_last) as patience:
                return self._published(run_dir, policy, patience)
        except (TrainerError, Stopped, OSError) as error:
            log.warning("artifacts were not published, they stay on this host", path=str(run_dir), error=str(error))
            return self._publisher.sent

    def _published(
        self,
        run_dir: Path,
        policy: RetryPolicy,
        patience: StopSignal,
        finished: Finished | None = None,
    ) -> list[Artifact]:
        self._record.event(PhaseStarted(phase=Phase.UPLOADING))

        def publish() -> list[Artifact]:
            self._heartbeat.confirm(patience)
            try:
                return self._publisher.publish(
                    run_dir,
                    self._record.log_path,
                    patience,
                    self._record.event,
                    finished,
                )
            except WeightsChanged:
                raise
            except (TrainerError, OSError) as error:
                self._record.warn_once("upload_waits", f"Upload failed, retrying: {error}")
                raise Unavailable(str(error), retry_after=getattr(error, "retry_after", None)) from error

        artifacts = retrying(publish, policy, patience)
        self._record.event(PhaseStarted(phase=Phase.ENDING))
        return artifacts


def listed(artifacts: list[Artifact], run_dir: Path) -> JsonObject:
    """The part of a row's results that says what was published, and where it is on this host."""
    return {"artifacts": [artifact.as_json() for artifact in artifacts], "run_dir": str(run_dir)}
