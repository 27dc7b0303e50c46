"""Publishing of the artifacts of an attempt: the retries, and the results in the row."""

from __future__ import annotations

from dataclasses import asdict

import structlog

from trainer.core.errors import TrainerError, Unavailable
from trainer.core.events import Finished, Phase
from trainer.core.job import JsonObject
from trainer.core.results import Artifact
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.run_folder import LAST, WEIGHTS, RunFolder
from trainer.core.stop import Stopped, StopSignal
from trainer.disk.untrusted_folder import UntrustedFolder
from trainer.worker.artifact_upload import ArtifactUpload, WeightsChanged
from trainer.worker.run_context import RunContext
from trainer.worker.run_services import RunServices

log = structlog.get_logger()

# an upload to an unavailable or misconfigured store is retried for up to a day; then the run is requeued
PUBLISH_RETRIES = RetryPolicy(tries=100_000, first_wait=1.0, longest_wait=60.0, total_seconds=86_400)
ONE_TRY = RetryPolicy(tries=1)


class Publisher:
    """Publishes the artifacts of one attempt."""

    def __init__(self, services: RunServices, run: RunContext) -> None:
        self._run = run
        self._seconds = services.times.upload  # time limit of an upload after the run is stopped
        self._upload = ArtifactUpload(services.store, services.artifacts_bucket, run.job)

    def publish_finished(self, folder: RunFolder, finished: Finished) -> list[Artifact]:
        """Publish a finished training. Errors of the store and the disk are retried according to `PUBLISH_RETRIES`.

        Raises `WeightsChanged` if the weights are not the trained weights, Unavailable after the last retry, Stopped.
        """
        with self._run.stop.extra_time(self._seconds) as time_limit:
            return self._publish(folder, PUBLISH_RETRIES, time_limit, finished)

    def publish_unfinished(self, folder: RunFolder, *, is_last: bool) -> JsonObject:
        """Publish the existing files of an unfinished training. Return the results for the row. Never raises.

        `is_last` is True if no attempt follows. In the second and later attempts, the results are empty unless the
        weights are published, because an earlier attempt may have published more. If the run ends in its first attempt,
        the files are published even if there are no weights.
        """
        is_first = self._run.job.attempt <= 1
        if not _has_weights(folder) and not (is_last and is_first):
            return {}
        # if another attempt follows, there is only one try
        policy = RetryPolicy(total_seconds=self._seconds) if is_last else ONE_TRY
        try:
            with self._run.stop.extra_time(self._seconds, at_most=not is_last) as time_limit:
                artifacts = self._publish(folder, policy, time_limit)
        except (TrainerError, Stopped, OSError) as error:
            log.warning("artifacts not published, they stay on this host", path=str(folder.path), error=str(error))
            artifacts = self._upload.sent
        has_weights = any(artifact.name == LAST for artifact in artifacts)
        return listed(artifacts, folder) if artifacts and (is_first or has_weights) else {}

    def _publish(
        self, folder: RunFolder, policy: RetryPolicy, stop: StopSignal, finished: Finished | None = None
    ) -> list[Artifact]:
        run = self._run
        run.enter(Phase.UPLOADING)

        def publish() -> list[Artifact]:
            run.heartbeat.confirm(stop)
            try:
                return self._upload.upload(folder, run.events.log.path, stop, run.events.record, finished)
            except WeightsChanged:
                raise
            except (TrainerError, OSError) as error:
                run.events.warn_once("upload_waits", f"Upload failed, retrying: {error}")
                raise Unavailable(str(error), retry_after=getattr(error, "retry_after", None)) from error

        artifacts = retrying(publish, policy, stop)
        run.enter(Phase.ENDING)
        return artifacts


def listed(artifacts: list[Artifact], folder: RunFolder) -> JsonObject:
    """Return the results for the row: the published artifacts, and the folder of the training on this host."""
    return {"artifacts": [asdict(artifact) for artifact in artifacts], "run_dir": str(folder.output.path)}


def _has_weights(folder: RunFolder) -> bool:
    with UntrustedFolder(folder.output.path) as output:
        return output.is_file(f"{WEIGHTS}/{LAST}")
