"""The run's own log on a disk that has no space."""

from pathlib import Path

from trainer.worker.run_log import RunLog


def test_a_full_disk_costs_lines_of_the_log_and_not_the_run():
    log = RunLog(Path("/dev/full"), timestamps=True)

    for number in range(2000):
        log.note(f"event {number}")
        log.output("printed")
    log.close()
