"""The log of a run on a full disk."""

from pathlib import Path

from trainer.worker.run_log import RunLog


def test_full_disk_drops_log_lines_and_does_not_fail_run():
    log = RunLog(Path("/dev/full"), timestamps=True)

    for number in range(2000):
        log.note(f"event {number}")
        log.output("printed")
    log.close()
