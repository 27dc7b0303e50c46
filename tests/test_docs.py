"""What the documentation says is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from trainer.core.job import TRANSITIONS, Status
from trainer.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()


def section(title):
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def table_rows(text):
    """The cells of each table row whose first cell is in backticks."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


def test_every_setting_is_in_the_example_and_in_the_readme():
    settings = {name.upper() for name in Settings.model_fields}
    example = set(re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE))

    assert example == settings
    assert set(table_rows(section("Configuration"))) == settings


def test_the_defaults_in_the_readme_are_the_defaults():
    for name, (default, *_) in table_rows(section("Configuration")).items():
        field = Settings.model_fields[name.lower()]
        value = default.strip("`")
        if default.startswith("`") and name != "TRAINER_HOME":
            expected = field.default
            assert value == (str(int(expected)) if isinstance(expected, bool) else f"{expected}".removesuffix(".0")), (
                name
            )


def test_the_example_sets_the_defaults(monkeypatch):
    for line in EXAMPLE.splitlines():
        if "=" in line and not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))

    assert Settings() == Settings.model_construct(**Settings().model_dump())
    for name, field in Settings.model_fields.items():
        if not field.is_required() and field.default_factory is None and name != "trainer_home":
            assert getattr(Settings(), name) == field.default, name


def test_the_readmes_states_are_the_states():
    rows = table_rows(README.split("### What a run's row looks like over time")[1].split("\n## ")[0])

    assert set(rows) == {status.value for status in Status}
    for status, cells in rows.items():
        told = set(re.findall(r"`(\w+)`", cells[-1]))
        # queued → completed|failed is the late ending of a worker whom nobody replaced: for the code, not for readers
        late = {"completed", "failed"} if status == "queued" else set()
        assert told == {after.value for after in TRANSITIONS[Status(status)]} - late


def test_every_command_in_the_readme_exists():
    text = subprocess.run(
        [sys.executable, "trainer_service.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    known = set(re.findall(r"^  (\w+) ", text.split("Commands:")[1], re.MULTILINE))
    used = set(re.findall(r"trainer_service\.py (\w+)", README))

    assert used <= known
    assert known <= used | {"demo"}


def test_every_make_target_in_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()

    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

