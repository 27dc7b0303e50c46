"""The documentation agrees with the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from trainer.core.events import Event, Phase
from trainer.core.job import TRANSITIONS, Outcome, Status, Verdict
from trainer.core.ports import Delivery
from trainer.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
DOCUMENTS = {
    name: (ROOT / name).read_text()
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "systemd/README.md", "tests/faults/README.md")
} | {f"docs/{name}.md": text for name, text in PAGES.items()}
EXAMPLE = (ROOT / ".env.example").read_text()


def section(title, text=README):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def table_rows(text):
    """Return the cells of each table row whose first cell is in backticks."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


def test_every_setting_is_documented_and_in_env_example():
    settings = {name.upper() for name in Settings.model_fields}
    example = set(re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE))

    assert example == settings
    assert set(table_rows(PAGES["settings"])) == settings


def test_documented_defaults_equal_the_defaults_in_the_code():
    for name, (default, *_) in table_rows(PAGES["settings"]).items():
        field = Settings.model_fields[name.lower()]
        value = default.strip("`")
        if default.startswith("`") and name != "TRAINER_HOME":
            expected = field.default
            assert value == (str(int(expected)) if isinstance(expected, bool) else f"{expected}".removesuffix(".0")), (
                name
            )


def test_env_example_contains_the_defaults(monkeypatch):
    for line in EXAMPLE.splitlines():
        if "=" in line and not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))

    assert Settings() == Settings.model_construct(**Settings().model_dump())
    for name, field in Settings.model_fields.items():
        if not field.is_required() and field.default_factory is None and name != "trainer_home":
            assert getattr(Settings(), name) == field.default, name


def test_documented_run_states_equal_the_states_in_the_code():
    rows = table_rows(section("Status and results of a run", PAGES["runs"]))

    assert set(rows) == {status.value for status in Status}
    for status, cells in rows.items():
        documented = set(re.findall(r"`(\w+)`", cells[-1]))
        # queued → completed|failed is too rare for the table: the outcome arrives after the run was requeued
        late = {"completed", "failed"} if status == "queued" else set()
        assert documented == {after.value for after in TRANSITIONS[Status(status)]} - late


def test_every_documented_command_exists():
    text = subprocess.run(
        [sys.executable, "trainer_service.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    known = set(re.findall(r"^  (\w+) ", text.split("Commands:")[1], re.MULTILINE))
    used = set(re.findall(r"(?:trainer_service\.py|yolo-trainer) ([a-z]+)\b", "\n".join(blocks("sh"))))

    assert used <= known
    assert {name.split()[0] for name in table_rows(PAGES["commands"])} == known


def test_every_documented_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()

    for text in DOCUMENTS.values():
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_link_points_to_an_existing_file_and_heading():
    for name, text in DOCUMENTS.items():
        for link in re.findall(r"\]\(([^)]+)\)", text):
            file, _, anchor = link.partition("#")
            if link.startswith("https://"):
                continue
            target = (ROOT / name).parent / file if file else ROOT / name
            assert target.exists(), f"{name}: {link}"
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{name}: {link}"


def test_every_documented_path_exists():
    for name in ("CONTRIBUTING.md", "docs/architecture.md"):
        for path in re.findall(r"`((?:trainer|tests|supabase|docs)/[\w./]*)`", DOCUMENTS[name]):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_every_page_is_linked_from_the_readme():
    assert {f"docs/{name}.md" for name in PAGES} <= set(re.findall(r"\]\(([^)]+)\)", README))


# ── commands: a test runs each command, unless the command needs a different host ──

NEEDS_A_HOST = {
    "sudo": "a host with systemd; tests/acceptance/test_systemd.py checks the units with a fake systemd",
    "sudoedit": "root",
    "journalctl": "a host with systemd",
    "pip": "a virtual environment to install into",
    "yolo-trainer": "an installed package; the command is equal to trainer_service.py (tests/test_packaging.py)",
}


def blocks(language, text=README):
    """Return the fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Return each command of the shell blocks, without comments."""
    lines = [line.split("  #")[0].strip() for block in blocks("sh", text) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_every_documented_command_is_tested_or_needs_another_host():
    for command in commands(README + (ROOT / "systemd" / "README.md").read_text()):
        program, *arguments = command.rstrip(" &").split()
        if program == "make":
            continue  # checked in test_make_dry_run_accepts_every_documented_target
        if command == ". .venv/bin/activate":
            continue
        assert program in NEEDS_A_HOST or (program, arguments[0]) == ("python", "trainer_service.py"), command


def test_tested_block_contains_all_documented_commands():
    """tests/acceptance/test_readme.py runs the commands of the section `Your own runs, without any server`."""
    documented = {
        tuple(c.split()[2:3])
        for c in commands(README)
        if c.startswith("python trainer_service.py") and not c.endswith("&")
    }
    run = {
        tuple(c.split()[2:3]) for c in commands(section("Your own runs, without any server")) if c.startswith("python")
    }

    assert documented <= run


def test_make_dry_run_accepts_every_documented_target():
    """The programs that the targets start have separate tests."""
    for target in re.findall(r"make ([a-z-]+)", "\n".join(commands(README)) + README):
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert plan.returncode == 0, plan.stderr


# ── troubleshooting, metrics ──


def test_every_message_in_the_troubleshooting_table_is_in_the_source():
    files = [*(ROOT / "trainer").rglob("*.py"), *(ROOT / "supabase").rglob("*.sql")]
    # Python joins adjacent literals into one text, so the test also joins them
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in files))
    rows = [line.split("|")[1] for line in PAGES["troubleshooting"].splitlines() if line.startswith("| ")][1:]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]

    assert len(rows) >= 15
    assert len(quoted) >= 20
    assert [text for text in quoted if text not in source and text != "run.log"] == []


def test_every_metric_is_documented():
    from trainer.core.gpu_load import GpuLoad
    from trainer.reporting.prometheus import MetricsReporter

    registry = MetricsReporter(lambda: [GpuLoad(index=0, name="H200", memory_used=1, utilization=0.5)]).registry
    made = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}

    assert set(table_rows(section("Metrics", PAGES["operating"]))) == made


def test_readme_sections_are_in_expected_order():
    assert re.findall(r"^## (.+)$", README, re.MULTILINE) == [
        *("Two commands", "Install", "Your own runs, without any server", "Connect it to Supabase", "Operate it"),
        *("Documentation", "License"),
    ]


# ── codes: documented with their meaning, in snake_case ──


def called(tree):
    """Yield each call with the name of its function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)


def texts(node):
    """Return all literal texts that can be the value of an expression."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp():
            return texts(node.body) + texts(node.orelse)
    return []


def codes_in_source():
    """Yield the code of each warning: the `code` of each `Warned`, and the first argument of warning functions."""
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        for call, function in called(ast.parse(path.read_text())):
            given = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            if function in {"warn_once", "warn", "_warn", "_NotInBucket"}:
                given += call.args[:1]
            elif function != "Warned":
                continue
            yield from (text for argument in given for text in texts(argument) if " " not in text)


def test_documented_warning_codes_equal_the_codes_in_the_code():
    """The codes of dataset findings are checked in tests/unit/datasets/test_findings.py."""
    assert set(table_rows(section("Warning codes", PAGES["events"]))) == set(codes_in_source())


def test_every_event_kind_phase_and_outcome_is_documented():
    kinds = {kind.__dataclass_fields__["kind"].default for kind in get_args(Event)}
    outcomes = {kind.__dataclass_fields__["kind"].default for kind in get_args(Outcome)}

    # events of the queue are written in SQL and in jobs/sqlite.py
    assert set(table_rows(section("Event kinds", PAGES["events"]))) == kinds | {"lease_expired", "canceled"}
    assert set(table_rows(section("Phases", PAGES["events"]))) == {phase.value for phase in Phase}
    assert set(table_rows(section("Outcomes", PAGES["events"]))) == outcomes
    assert set(table_rows(section("Verdicts", PAGES["events"]))) == {verdict.value for verdict in Verdict}
    assert set(table_rows(section("Deliveries", PAGES["events"]))) == {delivery.value for delivery in Delivery}


def test_documented_codes_are_snake_case():
    codes = [code for page in ("events", "dataset-findings") for code in table_rows(PAGES[page])]

    assert [code for code in codes if not re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", code)] == []


# ── language: banned words ──

BANNED = re.compile(
    r"\b("
    # British spelling
    r"\w+(?:al|c|ogn|imil)is(?:e|es|ed|ing|ation)|(?:util|optim|organ|synchron|summar)is(?:e|es|ed|ing|ation)|"
    r"behaviours?|colours?|cancell(?:ed|ing)|label(?:led|ling)|learnt|"
    # metaphors and old-fashioned turns; see docs/glossary.md for the terms
    r"(?<![\"`'/])nobody(?:'s)?|somebody|whoever|mend(?:s|ed|ing)?|heirs?|anew|"
    r"go(?:es|ing)? on|lies below|for ever|what becomes of|hear[sd]? of|(?:is|are|was|were) told|speaks?"
    r")\b",
    re.IGNORECASE,
)
NOT_BANNED = {"precise", "precision", "exercise", "exercises", "exercised"}


def language_files():
    for pattern in ("*.md", "*.py", "*.sql", "*.service", ".env.example", "Makefile", "*.toml"):
        for path in ROOT.rglob(pattern):
            name = str(path.relative_to(ROOT))
            if not name.startswith((".venv", "tests/test_docs.py")) and "/.venv" not in name:
                yield name, path


def test_no_banned_words():
    """Plain English and American spelling in code, messages, comments and docs."""
    found = [
        f"{name}:{number}: {match[0]}"
        for name, path in language_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        for match in BANNED.finditer(line)
        if match[0].lower() not in NOT_BANNED
    ]

    assert found == []
