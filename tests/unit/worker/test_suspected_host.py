"""Errors that a run can report falsely (`HostSuspected`) make the host unhealthy only if a test confirms them."""

import pytest

from trainer.core.errors import HostSuspected, MachineFailed, RunFailed
from trainer.worker.attempt import NOT_CONFIRMED
from trainer.worker.health import Health

CLAIM = HostSuspected("The GPU or its driver failed.")
FOUND = "The driver failed without a run."


class Host:
    """A host. Its tests return `problem` and `training_problem`."""

    def __init__(self):
        self.problem = self.training_problem = None
        self.training_tests = 0
        self.health = Health(lambda: self.problem)

    def test_training(self):
        self.training_tests += 1
        return self.training_problem

    def fails(self, run_id, error=CLAIM):
        """Claim a run that fails. Return the problem of the host, or None."""
        return self.health.record_failure(run_id, error, self.test_training)


@pytest.fixture
def host():
    return Host()


def test_report_is_not_attributed_to_host_if_all_tests_pass(host):
    for run_id in "aabbcc":
        assert host.fails(run_id) is None
    assert host.health.problem is None
    assert host.training_tests == 6


def test_report_is_attributed_to_host_if_training_without_run_fails(host):
    host.training_problem = FOUND
    assert host.fails("a") == FOUND == host.health.problem


def test_training_without_run_is_tested_again_until_it_works(host):
    host.training_problem = FOUND
    host.fails("a")
    for _ in range(2):
        host.health.test_again()
        assert host.health.problem == FOUND
    host.training_problem = None
    host.health.test_again()
    assert host.health.problem is None
    assert host.training_tests == 4


@pytest.mark.parametrize("error", [MachineFailed("killed"), RunFailed("odd")])
def test_other_failures_start_no_training_without_run(host, error):
    host.fails("a", error)
    assert host.training_tests == 0


def test_failed_self_test_needs_no_training_without_run(host):
    host.problem = "RUNS_DIR is full."
    assert host.fails("a") == "RUNS_DIR is full."
    assert host.training_tests == 0


def test_unconfirmed_reports_count_as_attempts_after_the_first(worker):
    """After the first report, another worker can claim the run first."""
    run_id = worker.enqueue()
    worker.datasets.error = CLAIM
    seen = []
    for number in range(1, 4):
        worker.update_row(run_id, not_before=None)
        worker.work(worker.claim(f"{number}1111111-1111-4111-8111-111111111111"))
        row = worker.row(run_id)
        seen.append((row["status"], row["failures"], row["host_failures"]))
        assert row["error_message"] == f"The GPU or its driver failed. {NOT_CONFIRMED}"
    assert seen == [("queued", 1, {"w": 1}), ("queued", 2, {"w": 1}), ("failed", 3, {})]


def test_confirmed_reports_of_one_worker_count_as_one_failure(worker):
    run_id = worker.enqueue()
    worker.datasets.error = CLAIM
    worker.trainer.test = lambda devices: FOUND
    for number in range(1, 5):
        worker.update_row(run_id, not_before=None)
        worker.work(worker.claim(f"{number}1111111-1111-4111-8111-111111111111"))
        row = worker.row(run_id)
        assert (row["status"], row["failures"], row["host_failures"]) == ("queued", 1, {"w": number})
    assert worker.health.problem == FOUND
