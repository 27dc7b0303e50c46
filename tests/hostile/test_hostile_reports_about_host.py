"""A training process that reports a broken GPU, disk or installation. It must not take the worker out of service.

The training process is in the real sandbox. The worker tests its host with another process, without code of the run.
"""

from dataclasses import replace

import pytest

from tests.hostile.attacked_worker import AttackedWorker
from trainer.worker.attempt import NOT_CONFIRMED

CRASH = "training.send(kind='crashed', error='RuntimeError', message={!r}, traceback='', phase='training')"
STARTING = "training.send(kind='phase', phase='starting', seconds=None)"
PRINTED = "CUDA driver initialization failed, you might not have a CUDA gpu."
CLAIMS = {
    "printed GPU error": f"print('RuntimeError: {PRINTED}', flush=True); os._exit(1)",
    "GPU memory error": CRASH.format("CUDA error: uncorrectable ECC error encountered") + "; os._exit(1)",
    "unsupported GPU": CRASH.format("CUDA error: no kernel image is available for execution") + "; os._exit(1)",
    "broken disk": "print('OSError: [Errno 5] Input/output error', flush=True); os._exit(1)",
    "exit while starting": f"{STARTING}; os._exit(1)",
    "broken installation": f"{STARTING}; {CRASH.format('libcudart.so.13')[:-1]}, is_installation=True); os._exit(1)",
    "no progress while starting": f"{STARTING}; import time; time.sleep(60)",
}


@pytest.fixture
def worker(tmp_path):
    attacked = AttackedWorker(tmp_path)
    attacked.trainer.limits = replace(attacked.trainer.limits, starting=3)
    yield attacked
    attacked.trainer.close()


@pytest.mark.parametrize("code", CLAIMS.values(), ids=CLAIMS)
def test_false_reports_of_two_runs_do_not_make_host_unhealthy(worker, code):
    worker.behave(with_epoch=code)
    runs = [worker.enqueue() for _ in range(2)]

    for number, _ in enumerate(runs, 1):
        worker.attempt(f"{number}1111111-1111-4111-8111-111111111111")

    assert worker.health.problem is None
    for run_id in runs:
        row = worker.row(run_id)
        assert (row["status"], row["failures"]) == ("queued", 1)
        assert row["error_message"].endswith(NOT_CONFIRMED)


def test_run_that_repeats_its_false_report_fails_after_its_attempts(worker):
    """After the first report, other workers can claim the run first. Each further report counts as a failed attempt."""
    worker.behave(at_epoch=1, print=PRINTED, exit=1)  # before the first checkpoint, which would reset the counts
    run_id = worker.enqueue()

    seen = []
    for number in range(1, 4):
        worker.update_row(run_id, not_before=None)
        worker.attempt(f"{number}1111111-1111-4111-8111-111111111111")
        row = worker.row(run_id)
        seen.append((row["status"], row["failures"], row["host_failures"]))

    assert seen == [("queued", 1, {"w": 1}), ("queued", 2, {"w": 1}), ("failed", 3, {})]
    assert worker.health.problem is None


def test_false_report_does_not_end_the_trial_of_a_host(worker):
    worker.host_problem = "RUNS_DIR is full."
    with worker.health.watched():
        worker.host_problem = None
        worker.health.test_again()
        worker.behave(with_epoch=CLAIMS["GPU memory error"])
        worker.enqueue()

        worker.attempt()

        assert worker.health.problem is None


def test_process_without_run_finds_broken_host(worker):
    """Here, the report is true: every process of a training fails."""
    worker.behave(at_epoch=0, print="ImportError: libcudart.so.13", exit=1)
    run_id = worker.enqueue()

    worker.attempt()

    assert "libcudart.so.13" in worker.health.problem
    row = worker.row(run_id)
    assert (row["status"], row["failures"], row["host_failures"]) == ("queued", 1, {"w": 1})
    worker.health.test_again()
    assert worker.health.problem, "the host is tested with the same process again"
    worker.behave()
    worker.health.test_again()
    assert worker.health.problem is None
