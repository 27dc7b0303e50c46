"""Metrics for Prometheus, served on localhost. This module is imported only if METRICS_PORT is set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from trainer.core.errors import Misconfigured, TrainerError
from trainer.core.events import EpochFinished, Event, Phase, PhaseStarted, TransferProgress
from trainer.core.gpu_load import GpuLoad
from trainer.core.job import Beat, Job, JsonObject, Lease, Retry, RunEvent, Verdict
from trainer.core.ports import AttemptEnd, Delivery

# buckets in seconds: a phase takes from seconds to a day
MINUTES = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)


class MetricsReporter:
    """Counts runs, phases and bytes from events, and heartbeats through `counted`."""

    def __init__(
        self, gpu_loads: Callable[[], Sequence[GpuLoad]], is_healthy: Callable[[], bool] = lambda: True
    ) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"namespace": "yolo_trainer", "registry": self.registry}
        self._runs = Counter("runs", "Ended attempts, by outcome.", ["outcome"], **made)
        self._running = Gauge("runs_active", "Runs that this worker executes now.", **made)
        self._phases = Histogram("phase_seconds", "Length of each phase.", ["phase"], buckets=MINUTES, **made)
        self._waits = Histogram("queue_wait_seconds", "Time from insert to first claim.", buckets=MINUTES, **made)
        self._bytes = Counter("transferred_bytes", "Transferred bytes, by direction.", ["direction"], **made)
        self._epoch = Gauge("epoch", "The newest finished epoch of a run.", ["run_id"], **made)
        self._beats = Counter("beats", "Lease renewals that the queue answered.", **made)
        self._failed_beats = Counter("beat_failures", "Lease renewals without an answer from the queue.", **made)
        self._host_failures = Counter("host_failures", "Attempts that failed because of this worker's host.", **made)
        Gauge("healthy", "1 while this worker claims runs, 0 while its host is unhealthy.", **made).set_function(
            is_healthy
        )
        self.registry.register(_Gpus(gpu_loads))
        self._dropped = Counter(
            "reporter_dropped", "Events that a slow reporter did not receive.", ["reporter", "kind"], **made
        )
        self._active: set[tuple[str, int]] = set()  # run ids and attempts
        self._phase_of: dict[str, Phase] = {}
        self._moved: dict[tuple[str, Phase], int] = {}

    def serve(self, port: int) -> Callable[[], None]:
        """Serve http://localhost:`port`/metrics. Return a function that stops the server. Raises Misconfigured."""
        try:
            server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            fix = "choose a free port above 1023, or 0 to disable metrics"
            message = f"METRICS_PORT={port} cannot be opened ({error.strerror}): {fix}."
            raise Misconfigured(message) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def started(self, job: Job) -> None:
        self._active.add((job.id, job.attempt))
        self._running.set(len(self._active))
        if job.waited is not None and job.attempt == 1:
            self._waits.observe(job.waited)

    def event(self, job: Job, event: Event) -> None:
        match event:
            case PhaseStarted():
                before = self._phase_of.get(job.id)
                if before and event.seconds is not None:
                    self._phases.labels(before.value).observe(event.seconds)
                self._phase_of[job.id] = event.phase
            case EpochFinished():
                self._epoch.labels(job.id).set(event.epoch)
            case TransferProgress():
                moved = max(0, event.bytes - self._moved.get((job.id, event.phase), 0))
                self._moved[job.id, event.phase] = event.bytes
                direction = "upload" if event.phase is Phase.UPLOADING else "download"
                self._bytes.labels(direction).inc(moved)
            case _:
                pass

    def count_dropped(self, reporter: str, kind: str) -> None:
        """Count an event that a reporter did not receive."""
        self._dropped.labels(reporter, kind).inc()

    def counted(self, beat: Beat) -> Beat:
        """Return a function that sends a heartbeat with `beat` and counts the heartbeats."""

        def send(lease: Lease, progress: JsonObject | None, events: Sequence[RunEvent]) -> Verdict:
            try:
                verdict = beat(lease, progress, events)
            except TrainerError:
                self._failed_beats.inc()
                raise
            self._beats.inc()
            return verdict

        return send

    def ended(self, job: Job, end: AttemptEnd) -> None:
        """Count the attempt by its outcome, or as `lost` if the lease is lost."""
        self._active.discard((job.id, job.attempt))
        self._running.set(len(self._active))
        if end.delivery is not Delivery.PENDING:  # the next process counts a pending outcome
            outcome = end.outcome
            self._runs.labels(outcome.kind if outcome and end.delivery is Delivery.ACCEPTED else "lost").inc()
            self._host_failures.inc(isinstance(outcome, Retry) and outcome.host_failed)
        self._phase_of.pop(job.id, None)
        self._moved = {key: moved for key, moved in self._moved.items() if key[0] != job.id}
        if (job.id,) in self._epoch._metrics:  # noqa: SLF001 - there is no public API for this check
            self._epoch.remove(job.id)


class _Gpus(Collector):
    """Reads the load of the GPUs when Prometheus scrapes."""

    def __init__(self, loads: Callable[[], Sequence[GpuLoad]]) -> None:
        self._loads = loads

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["gpu", "name"]
        memory = GaugeMetricFamily("yolo_trainer_gpu_memory_bytes", "GPU memory in use.", labels=labels)
        load = GaugeMetricFamily(
            "yolo_trainer_gpu_utilization", "Share of the time in which the GPU was busy.", labels=labels
        )
        for gpu in self._loads():
            memory.add_metric([str(gpu.index), gpu.name], gpu.memory_used)
            load.add_metric([str(gpu.index), gpu.name], gpu.utilization)
        yield memory
        yield load
