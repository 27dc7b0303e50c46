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
    rows = table_rows(README.split("## What a run's row looks like over time")[1].split("\n## ")[0])

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


# ── commands: each is run by a test, or needs what a test host has not ──

NEEDS_A_HOST = {
    "sudo": "a host with systemd; tests/acceptance/test_systemd.py checks the units and plays systemd's side",
    "sudoedit": "root",
    "journalctl": "a host with systemd",
}


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Each command of the shell blocks, without its comment."""
    lines = [line.split("  #")[0].strip() for block in blocks("sh", text) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_every_command_of_the_documentation_is_run_by_a_test_or_needs_a_host():
    for command in commands(README + (ROOT / "systemd" / "README.md").read_text()):
        program, *arguments = command.rstrip(" &").split()
        if program == "make":
            continue  # test_every_make_target_does_what_it_says
        if command == ". .venv/bin/activate":
            continue
        assert program in NEEDS_A_HOST or (program, arguments[0]) == ("python", "trainer_service.py"), command


def test_the_shell_commands_of_the_service_are_all_in_one_test():
    """tests/acceptance/test_readme.py runs the whole block in its order; other blocks only repeat some of it."""
    told = {
        tuple(c.split()[2:3])
        for c in commands(README)
        if c.startswith("python trainer_service.py") and not c.endswith("&")
    }
    run = {
        tuple(c.split()[2:3]) for c in commands(section("Your own runs, without any server")) if c.startswith("python")
    }

    assert told <= run


def test_every_make_target_does_what_it_says():
    """A dry run: what `make demo` and `make test` start is itself tested, or is this."""
    for target in re.findall(r"make ([a-z-]+)", "\n".join(commands(README)) + README):
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert plan.returncode == 0, plan.stderr


# ── troubleshooting and metrics ──


def test_every_message_in_the_troubleshooting_table_is_one_of_ours():
    files = [*(ROOT / "trainer").rglob("*.py"), *(ROOT / "supabase").rglob("*.sql")]
    # as the person sees it: adjacent literals are one text
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in files))
    rows = [line.split("|")[1] for line in section("Troubleshooting").splitlines() if line.startswith("| ")][1:]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]

    assert len(rows) >= 15
    assert len(quoted) >= 20
    assert [text for text in quoted if text not in source and text != "run.log"] == []


def test_every_metric_is_in_the_readme():
    from trainer.reporting.prometheus import MetricsReporter

    class Load:
        index, name, memory_used, utilisation = 0, "H200", 1, 0.5

    registry = MetricsReporter(lambda: [Load()]).registry
    made = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}

    assert set(table_rows(section("Metrics"))) == made


def test_the_readme_has_its_sections_in_the_order_in_which_they_are_needed():
    titles = re.findall(r"^## (.+)$", README, re.MULTILINE)
    wanted = [
        *("Two commands", "Connect it to Supabase", "Install as a service", "Insert a run", "Configuration"),
        *("What a run's row looks like over time", "Datasets", "Troubleshooting", "Reliability", "Speed"),
        *("How the code is laid out", "License"),
    ]

    assert [title for title in titles if title in wanted] == wanted
