"""The Prometheus metrics of a worker."""

import socket

import httpx
import pytest

from tests.unit.worker.fakes import raising
from tests.unit.worker.harness import WorkerFixture
from trainer.core.errors import Unavailable
from trainer.core.events import Phase, PhaseStarted, TransferProgress
from trainer.core.gpu_load import GpuLoad
from trainer.core.job import Completed, Job, Retry, RunRequest, Status
from trainer.core.ports import AttemptEnd, Delivery
from trainer.reporting.prometheus import MetricsReporter

JOB = Job(id="r", request=RunRequest(data_yaml="x"), attempt=1, waited=12.0)


@pytest.fixture
def metrics():
    return MetricsReporter(lambda: [GpuLoad(index=0, name="Big GPU", memory_used=7, utilization=0.5)])


def accepted(outcome, status):
    return AttemptEnd(outcome=outcome, delivery=Delivery.ACCEPTED, status=status)


def value(metrics, metric, /, **labels):
    return metrics.registry.get_sample_value(f"yolo_trainer_{metric}", labels)


def test_runs_are_counted_by_outcome(metrics):
    metrics.started(JOB)
    assert value(metrics, "runs_active") == 1

    metrics.ended(JOB, accepted(Completed(results={}, trained_model_url=None), Status.COMPLETED))

    assert value(metrics, "runs_active") == 0
    assert value(metrics, "runs_total", outcome="completed") == 1


@pytest.mark.parametrize("outcome", [None, Completed(results={}, trained_model_url=None)])
def test_run_with_lost_lease_is_counted_as_lost(metrics, outcome):
    metrics.started(JOB)

    metrics.ended(JOB, AttemptEnd(outcome=outcome, delivery=Delivery.LOST))

    assert value(metrics, "runs_active") == 0
    assert value(metrics, "runs_total", outcome="lost") == 1


def test_end_of_run_of_another_process_does_not_change_active_runs(metrics):
    metrics.ended(JOB, accepted(Retry(message="crashed"), Status.QUEUED))

    assert value(metrics, "runs_active") == 0
    assert value(metrics, "runs_total", outcome="retry") == 1


def test_undelivered_outcome_is_not_counted(metrics):
    metrics.started(JOB)

    metrics.ended(JOB, AttemptEnd(outcome=Retry(message="x", host_failed=True), delivery=Delivery.PENDING))

    assert value(metrics, "runs_active") == 0
    assert value(metrics, "runs_total", outcome="retry") is None
    assert value(metrics, "host_failures_total") == 0


def test_dropped_events_are_counted_by_reporter(metrics):
    metrics.count_dropped("SlowReporter", "batch")

    assert value(metrics, "reporter_dropped_total", reporter="SlowReporter", kind="batch") == 1


def test_failures_of_the_host_are_counted(metrics):
    for host_failed in (True, False):
        metrics.started(JOB)
        metrics.ended(JOB, accepted(Retry(message="x", host_failed=host_failed), Status.QUEUED))

    assert value(metrics, "host_failures_total") == 1
    assert value(metrics, "runs_total", outcome="retry") == 2


def test_unhealthy_host_is_reported():
    problems = []
    metrics = MetricsReporter(list, lambda: not problems)
    assert value(metrics, "healthy") == 1

    problems.append("RUNS_DIR is full.")

    assert value(metrics, "healthy") == 0


def test_phase_duration_is_measured_when_next_phase_starts(metrics):
    metrics.event(JOB, PhaseStarted(phase=Phase.PREPARING))
    metrics.event(JOB, PhaseStarted(phase=Phase.TRAINING, seconds=4.5))

    assert value(metrics, "phase_seconds_sum", phase="preparing") == 4.5


def test_wait_in_queue_is_measured_when_run_starts(metrics):
    metrics.started(JOB)

    assert value(metrics, "queue_wait_seconds_sum") == 12.0


def test_transferred_bytes_are_counted_once(metrics):
    for done in (10, 25):
        metrics.event(JOB, transfer(Phase.DOWNLOADING, done))
    metrics.event(JOB, transfer(Phase.UPLOADING, 5))

    assert value(metrics, "transferred_bytes_total", direction="download") == 25
    assert value(metrics, "transferred_bytes_total", direction="upload") == 5


def transfer(phase, done):
    return TransferProgress(phase=phase, files=1, total_files=2, bytes=done, total_bytes=50, rate=1.0, eta_seconds=None)


def test_gpu_memory_and_utilization_are_read_on_request(metrics):
    assert value(metrics, "gpu_memory_bytes", gpu="0", name="Big GPU") == 7
    assert value(metrics, "gpu_utilization", gpu="0", name="Big GPU") == 0.5


def test_heartbeats_and_their_failures_are_counted(metrics, tmp_path):
    worker = WorkerFixture(tmp_path)
    worker.enqueue()
    lease = worker.claim()
    metrics.counted(worker.queue.beat)(lease, None, [])
    with pytest.raises(Unavailable):
        metrics.counted(raising(Unavailable("down")))(lease, None, [])

    assert value(metrics, "beats_total") == 1
    assert value(metrics, "beat_failures_total") == 1


def test_epoch_metric_is_removed_when_run_ends(metrics, tmp_path):
    worker = WorkerFixture(tmp_path)
    run_id = worker.enqueue()

    worker.work(reporter=metrics, beat=metrics.counted(worker.queue.beat))

    assert value(metrics, "runs_total", outcome="completed") == 1
    assert value(metrics, "beats_total") >= 1
    assert value(metrics, "epoch", run_id=run_id) is None


def test_metrics_are_served_on_localhost(metrics):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = metrics.serve(port)

    try:
        assert "yolo_trainer_runs_active" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    finally:
        stop()
