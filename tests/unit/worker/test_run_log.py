"""The log of a run on a full disk."""

from pathlib import Path

from trainer.worker.run_log import RunLog


def test_run_log_raises_no_error_on_full_disk():
    log = RunLog(Path("/dev/full"), timestamps=True)

    for number in range(2000):
        log.note(f"event {number}")
        log.output("printed")
    log.close()
