"""A sick host takes no runs: when it stops, how it comes back. The clock is moved by hand; nothing sleeps."""

import threading

import pytest

from trainer.core.errors import HostFailed, MachineFailed, RunFailed
from trainer.worker.health import Health

FULL = "RUNS_DIR is full."
KILLED = MachineFailed("The training process was killed.")
DRIVER = HostFailed("The GPU or its driver failed.")


class Host:
    """A host with a clock and a self-test that says `problem`."""

    def __init__(self):
        self.now = 1000.0
        self.problem = None
        self.tests = 0
        self.health = Health(self.test, clock=lambda: self.now)

    def test(self):
        self.tests += 1
        return self.problem

    def fails(self, run_id, error=DRIVER):
        """A run that is claimed and fails; what the host is blamed for."""
        self.health.claimed(run_id)
        blamed = self.health.record_failure(run_id, error)
        self.health.released(run_id)
        return blamed

    def trains(self, run_id):
        """A run that is claimed and keeps the state of its first epoch."""
        self.health.claimed(run_id)
        self.health.record_success(run_id)
        self.health.released(run_id)

    def pause(self):
        """Seconds to the next self-test; then it is time for that."""
        seconds = self.health.seconds_to_test()
        self.now += seconds
        return seconds


@pytest.fixture
def host():
    return Host()


# ── whose fault a failure is ──


def test_a_failure_is_the_hosts_when_it_fails_its_self_test(host):
    host.problem = FULL
    assert host.fails("a", KILLED) == FULL == host.health.problem


def test_a_failure_is_not_the_hosts_when_it_passes_its_self_test(host):
    for run_id in "abcdef":
        assert not host.fails(run_id, KILLED)
    assert host.health.problem is None


def test_a_failed_training_is_the_hosts_when_it_fails_its_self_test(host):
    """Libraries say odd things on a full disk."""
    assert not host.fails("a", RunFailed("odd"))
    host.problem = FULL
    assert host.fails("b", RunFailed("odd")) == FULL


def test_what_no_run_can_cause_is_the_hosts_whatever_the_self_test_says(host):
    assert host.fails("a", DRIVER) == str(DRIVER)


def test_two_runs_on_which_the_service_itself_failed_stop_the_claims(host):
    """A host without threads or memory, say; the runs lose an attempt each, because it may be them."""
    host.health.record_service_failure("a", "The service failed.")
    host.health.record_service_failure("a", "The service failed.")
    assert host.health.problem is None
    host.health.record_service_failure("b", "The service failed.")
    assert host.health.problem == "The service failed."


# ── when it stops ──


def test_one_failure_without_a_failed_self_test_stops_nothing(host):
    host.fails("a")
    assert host.health.problem is None


def test_failures_of_two_runs_in_a_row_stop_the_claims(host):
    host.fails("a")
    host.fails("b")
    assert host.health.problem == str(DRIVER)


def test_two_failures_of_one_run_in_a_row_stop_the_claims(host):
    """What no run can cause is the host's, though only one run is there to show it."""
    host.fails("a")
    host.fails("a")
    assert host.health.problem == str(DRIVER)


def test_one_run_that_the_host_fails_again_and_again_starves_no_other(host):
    """Its dataset is on a mount that is broken, say: others train between its attempts."""
    pauses = []
    for other in "bcdef":
        host.fails("a")
        host.fails("a")
        pauses.append(host.pause())
        host.health.test_again()
        host.trains(other)
        assert (host.health.problem, host.health.awaits_trial) == (None, False)
    assert pauses == pytest.approx([10] * 5, rel=0.21)


def test_a_training_that_kept_a_state_between_two_failures_keeps_the_claims_going(host):
    host.fails("a")
    host.trains("b")
    host.fails("c")
    assert host.health.problem is None


def test_a_run_that_completed_between_two_failures_keeps_the_claims_going(host):
    host.fails("a")
    host.health.record_success("b")
    host.fails("c")
    assert host.health.problem is None


def test_a_host_that_is_sick_at_its_start_claims_nothing(host):
    host.problem = FULL
    with host.health.watched():
        assert host.health.problem == FULL


# ── how it comes back ──


def test_a_passed_self_test_allows_one_run_on_trial(host):
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


def test_a_trial_that_proves_nothing_is_followed_by_another(host):
    host.problem = FULL
    host.fails("a", KILLED)
    host.problem = None
    host.health.test_again()
    for run_id in "bc":
        host.health.claimed(run_id)
        assert host.health.awaits_trial
        host.health.released(run_id)
        assert not host.health.awaits_trial


def test_a_failed_trial_stops_the_claims_at_once(host):
    host.fails("a")
    host.fails("b")
    host.health.test_again()
    assert host.health.problem is None
    host.fails("b")
    assert host.health.problem == str(DRIVER)


def test_a_training_on_another_slot_ends_no_trial(host):
    """One GPU of two is broken: what still works proves nothing about what does not."""
    host.health.claimed("old")
    host.fails("a")
    host.fails("b")
    host.trains("old")
    assert host.health.problem
    host.health.test_again()
    host.health.claimed("trial")
    host.health.record_success("old")
    assert host.health.awaits_trial


def test_the_pauses_between_self_tests_grow_up_to_ten_minutes(host):
    host.problem = FULL
    host.fails("a", KILLED)
    pauses = []
    for _ in range(9):
        pauses.append(host.pause())
        host.health.test_again()
    assert pauses == pytest.approx([10, 20, 40, 80, 160, 320, 600, 600, 600], rel=0.21)
    assert host.health.problem == FULL


def test_a_failed_trial_makes_the_next_pause_longer(host):
    host.fails("a")
    host.fails("b")
    pauses = []
    for _ in range(3):
        pauses.append(host.pause())
        host.health.test_again()
        host.fails("c")
    assert pauses == pytest.approx([10, 20, 40], rel=0.21)


def test_a_proof_makes_the_next_pause_short_again(host):
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


def test_the_reason_is_the_newest_one(host):
    host.problem = FULL
    host.fails("a", KILLED)
    host.problem = "The GPU is gone."
    host.health.test_again()
    assert host.health.problem == "The GPU is gone."


# ── the thread ──


def test_a_sick_host_is_tested_in_the_background_until_it_is_well(monkeypatch):
    monkeypatch.setattr("trainer.worker.health.FIRST_PAUSE", 0.001)
    problems, passed = [FULL, FULL, FULL, None], threading.Event()

    def test():
        problem = problems.pop(0)
        if problem is None:
            passed.set()
        return problem

    health = Health(test)
    with health.watched():
        assert passed.wait(5)
    assert problems == []


def test_a_healthy_host_is_tested_once_and_its_thread_ends(host):
    before = threading.active_count()
    with host.health.watched():
        pass
    assert (host.tests, threading.active_count()) == (1, before)


def test_a_self_test_that_hangs_holds_up_no_shutdown(host, monkeypatch):
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
        assert begun.wait(5)
    hanging.set()
