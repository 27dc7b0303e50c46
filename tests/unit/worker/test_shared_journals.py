"""Two services with the same TRAINER_HOME."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

WRITER = """
import sys
from pathlib import Path
from tests.unit.worker.test_journal import lease
from trainer.worker.journal import Journal
for number in range(200):
    journal = Journal.create(Path(sys.argv[1]), lease(f"run-{sys.argv[2]}-{number}"))
    journal.record("epoch", {"epoch": 1})
    assert journal.path.exists(), "the journal was renamed while its process was running"
    journal.discard()
"""

SCANNER = """
import sys
from pathlib import Path
from trainer.worker.orphaned_journals import orphaned_journals
folder, over, scans, taken = Path(sys.argv[1]), Path(sys.argv[2]), 0, 0
print("ready", flush=True)
while not over.exists() or not scans:
    scans += 1
    for journal in orphaned_journals(folder, "w", 60):
        taken += 1
        journal.close()
print(taken)
"""


def test_locked_journals_are_not_read_or_renamed_by_second_service(tmp_path):
    folder, over = tmp_path / "journals", tmp_path / "over"
    folder.mkdir()

    def started(code, argument):
        command = [sys.executable, "-c", code, str(folder), str(argument)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    scanners = [started(SCANNER, over), started(SCANNER, over)]
    assert [scanner.stdout.readline() for scanner in scanners] == ["ready\n"] * 2
    writers = [started(WRITER, "a"), started(WRITER, "b")]
    try:
        assert [(writer.communicate(timeout=60), writer.returncode) for writer in writers] == [(("", None), 0)] * 2
    finally:
        over.touch()

    assert [scanner.communicate(timeout=60)[0] for scanner in scanners] == ["0\n", "0\n"]
    assert list(folder.iterdir()) == []
