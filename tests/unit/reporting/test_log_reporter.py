"""The log lines of a run."""

import pytest
from structlog.testing import capture_logs

from trainer.core.events import EpochFinished, Phase, PhaseStarted, Warned
from trainer.core.job import Completed, Job, Retry, RunRequest, Status
from trainer.core.ports import AttemptEnd, Delivery
from trainer.reporting.log import LogReporter

JOB = Job(id="r", request=RunRequest(data_yaml="d"), attempt=2)
DONE = Completed(results={}, trained_model_url=None)
COMPLETED = AttemptEnd(outcome=DONE, delivery=Delivery.ACCEPTED, status=Status.COMPLETED)


def logged(*events, end=COMPLETED):
    with capture_logs() as lines:
        reporter = LogReporter()
        reporter.started(JOB)
        for event in events:
            reporter.event(JOB, event)
        reporter.ended(JOB, end)
    return lines


def test_every_log_line_has_run_id_and_attempt():
    assert {(line["run_id"], line["attempt"]) for line in logged(PhaseStarted(phase=Phase.TRAINING))} == {("r", 2)}


def test_log_lines_have_phase_after_first_phase_has_started():
    lines = logged(PhaseStarted(phase=Phase.TRAINING), EpochFinished(epoch=1, total_epochs=2, metrics={}, seconds=1.0))

    assert [line.get("phase") for line in lines] == [None, "training", "training", "training"]


def test_log_line_of_warning_has_constant_event_and_fields():
    _, line, _ = logged(Warned(code="no_gpu", message="The run trains on the CPU."))

    assert (line["event"], line["code"], line["message"]) == ("run warning", "no_gpu", "The run trains on the CPU.")
    assert line["log_level"] == "warning"


@pytest.mark.parametrize("status", [Status.QUEUED, Status.FAILED])
def test_log_line_of_outcome_retry_has_status_of_row(status):
    end = AttemptEnd(outcome=Retry(message="The disk is full."), delivery=Delivery.ACCEPTED, status=status)

    line = logged(end=end)[-1]

    assert (line["event"], line["outcome"], line["delivery"], line["status"]) == (
        "run ended",
        "retry",
        "accepted",
        status.value,
    )
    assert line["error"] == "The disk is full."


def test_lost_lease_is_logged_as_warning():
    line = logged(end=AttemptEnd(outcome=None, delivery=Delivery.LOST))[-1]

    assert (line["log_level"], line["delivery"], line["outcome"]) == ("warning", "lost", None)
