"""An unhealthy host claims no runs until it passes the self-test. It then claims one trial run.

If the trial run saves a checkpoint or completes, the host claims other runs.

Most tests use a fake clock, so that they do not sleep.
"""

import threading

import pytest

from trainer.core.errors import HostFailed, MachineFailed, RunFailed
from trainer.worker.health import Health

FULL = "RUNS_DIR is full."
KILLED = MachineFailed("The training process was killed.")
DRIVER = HostFailed("The training process cannot be started.")


class Host:
    """A host with a fake clock. Its self-test returns `problem`."""

    def __init__(self):
        self.now = 1000.0
        self.problem = None
        self.tests = 0
        self.health = Health(self.test, clock=lambda: self.now)

    def test(self):
        self.tests += 1
        return self.problem

    def fails(self, run_id, error=DRIVER):
        """Claim a run that fails. Return the problem of the host, or None."""
        self.health.claimed(run_id)
        blamed = self.health.record_failure(run_id, error)
        self.health.released(run_id)
        return blamed

    def trains(self, run_id):
        """Claim a run that saves a checkpoint."""
        self.health.claimed(run_id)
        self.health.record_success(run_id)
        self.health.released(run_id)

    def pause(self):
        """Move the clock to the next self-test. Return the length of this step in seconds."""
        seconds = self.health.seconds_to_test()
        self.now += seconds
        return seconds


@pytest.fixture
def host():
    return Host()


# ── failures of the host and of the run ──


def test_failure_is_attributed_to_host_if_self_test_fails(host):
    host.problem = FULL
    assert host.fails("a", KILLED) == FULL == host.health.problem


def test_failure_is_not_attributed_to_host_if_self_test_passes(host):
    for run_id in "abcdef":
        assert not host.fails(run_id, KILLED)
    assert host.health.problem is None


def test_failed_training_is_attributed_to_host_if_self_test_fails(host):
    """Libraries raise unrelated errors on a full disk."""
    assert not host.fails("a", RunFailed("odd"))
    host.problem = FULL
    assert host.fails("b", RunFailed("odd")) == FULL


def test_host_error_is_attributed_to_host_even_if_self_test_passes(host):
    assert host.fails("a", DRIVER) == str(DRIVER)


def test_service_failures_of_two_runs_stop_claims(host):
    """Example: the host has no free threads. Each run loses an attempt, because the run can be the cause."""
    host.health.record_service_failure("a", "The service failed.")
    host.health.record_service_failure("a", "The service failed.")
    assert host.health.problem is None
    host.health.record_service_failure("b", "The service failed.")
    assert host.health.problem == "The service failed."


# ── claims stop ──


def test_one_failure_with_passed_self_test_does_not_stop_claims(host):
    host.fails("a")
    assert host.health.problem is None


def test_failures_of_two_runs_in_a_row_stop_claims(host):
    host.fails("a")
    host.fails("b")
    assert host.health.problem == str(DRIVER)


def test_two_failures_of_one_run_in_a_row_stop_claims(host):
    """No run can cause this error, so two failures prove that the host is unhealthy, even if only one run is queued."""
    host.fails("a")
    host.fails("a")
    assert host.health.problem == str(DRIVER)


def test_run_that_fails_repeatedly_does_not_block_other_runs(host):
    """Example: the dataset of the run is on a broken mount. Other runs train between the attempts of this run."""
    pauses = []
    for other in "bcdef":
        host.fails("a")
        host.fails("a")
        pauses.append(host.pause())
        host.health.test_again()
        host.trains(other)
        assert (host.health.problem, host.health.awaits_trial) == (None, False)
    assert pauses == pytest.approx([10] * 5, rel=0.21)


def test_claims_continue_if_checkpoint_is_saved_between_two_failures(host):
    host.fails("a")
    host.trains("b")
    host.fails("c")
    assert host.health.problem is None


def test_claims_continue_if_run_completes_between_two_failures(host):
    host.fails("a")
    host.health.record_success("b")
    host.fails("c")
    assert host.health.problem is None


def test_host_unhealthy_at_start_claims_nothing(host):
    host.problem = FULL
    with host.health.watched():
        assert host.health.problem == FULL


# ── claims resume ──


def test_passed_self_test_allows_one_trial_run(host):
    host.problem = FULL
    host.fails("a", KILLED)
    host.problem = None
    host.pause()
    host.health.test_again()
    assert (host.health.problem, host.health.awaits_trial) == (None, False)
    host.health.claimed("b")
    assert host.health.awaits_trial
    host.health.record_success("b")
    assert not host.health.awaits_trial
    host.health.claimed("c")
    assert not host.health.awaits_trial


def test_inconclusive_trial_run_is_followed_by_another_trial_run(host):
    host.problem = FULL
    host.fails("a", KILLED)
    host.problem = None
    host.health.test_again()
    for run_id in "bc":
        host.health.claimed(run_id)
        assert host.health.awaits_trial
        host.health.released(run_id)
        assert not host.health.awaits_trial


def test_failed_trial_run_stops_claims_immediately(host):
    host.fails("a")
    host.fails("b")
    host.health.test_again()
    assert host.health.problem is None
    host.fails("b")
    assert host.health.problem == str(DRIVER)


def test_training_on_other_slot_does_not_end_trial_run(host):
    """One of two GPUs is broken. A training on the other GPU does not prove that the broken GPU works."""
    host.health.claimed("old")
    host.fails("a")
    host.fails("b")
    host.trains("old")
    assert host.health.problem
    host.health.test_again()
    host.health.claimed("trial")
    host.health.record_success("old")
    assert host.health.awaits_trial


def test_self_test_pauses_grow_to_ten_minutes(host):
    host.problem = FULL
    host.fails("a", KILLED)
    pauses = []
    for _ in range(9):
        pauses.append(host.pause())
        host.health.test_again()
    assert pauses == pytest.approx([10, 20, 40, 80, 160, 320, 600, 600, 600], rel=0.21)
    assert host.health.problem == FULL


def test_failed_trial_run_lengthens_next_pause(host):
    host.fails("a")
    host.fails("b")
    pauses = []
    for _ in range(3):
        pauses.append(host.pause())
        host.health.test_again()
        host.fails("c")
    assert pauses == pytest.approx([10, 20, 40], rel=0.21)


def test_success_resets_pause(host):
    host.problem = FULL
    host.fails("a", KILLED)
    for _ in range(4):
        host.health.test_again()
    host.problem = None
    host.health.test_again()
    host.trains("b")
    host.problem = FULL
    host.fails("c", KILLED)
    assert host.health.seconds_to_test() == pytest.approx(10, rel=0.21)


def test_newest_problem_is_reported(host):
    host.problem = FULL
    host.fails("a", KILLED)
    host.problem = "The GPU is gone."
    host.health.test_again()
    assert host.health.problem == "The GPU is gone."


# ── the thread of the self-test ──


def test_unhealthy_host_is_tested_in_background_until_healthy(monkeypatch):
    monkeypatch.setattr("trainer.worker.health.FIRST_PAUSE", 0.001)
    problems, passed = [FULL, FULL, FULL, None], threading.Event()

    def test():
        problem = problems.pop(0)
        if problem is None:
            passed.set()
        return problem

    health = Health(test)
    with health.watched():
        assert passed.wait(15)
    assert problems == []


def test_healthy_host_is_tested_once_and_its_thread_ends(host):
    before = threading.active_count()
    with host.health.watched():
        pass
    assert (host.tests, threading.active_count()) == (1, before)


def test_hanging_self_test_does_not_delay_shutdown(host, monkeypatch):
    monkeypatch.setattr("trainer.worker.health.LAST_TEST", 0.05)
    monkeypatch.setattr("trainer.worker.health.FIRST_PAUSE", 0.001)
    hanging, begun = threading.Event(), threading.Event()
    tests = []

    def test():
        tests.append("one")
        if len(tests) > 1:
            begun.set()
            hanging.wait(20)
        return FULL

    with Health(test).watched():
        assert begun.wait(15)
    hanging.set()
