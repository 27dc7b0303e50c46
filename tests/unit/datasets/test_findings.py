"""Findings: counts, examples, and one documented code for each kind."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.core.errors import DatasetError
from trainer.datasets.findings import MAX_EXAMPLES, Report
from trainer.datasets.labels.convert import MESSAGES

ROOT = Path(__file__).parents[3]
LEVELS = ("error", "warning", "note")


def reported() -> Iterator[tuple[str, str]]:
    """Yield (level, pattern of the code) of each call in the code that reports a finding; level "" if it varies."""
    for path in (ROOT / "trainer/datasets").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name == "Finding":
                values = {keyword.arg: keyword.value for keyword in node.keywords}
                yield from pattern("", values["code"])
            elif name in LEVELS and node.args:
                yield from pattern(name, node.args[0])
            elif name == "_report_rows":
                yield from pattern("error", node.args[2])
            elif name in ("add", "level") and node.args:
                yield from pattern("", node.args[1 if name == "add" and len(node.args) > 1 else 0])


def pattern(level: str, code: ast.expr) -> Iterator[tuple[str, str]]:
    if isinstance(code, ast.Constant) and re.fullmatch(r"[a-z]+([_-][a-z]+)+", str(code.value)):
        yield level, code.value
    elif isinstance(code, ast.JoinedStr):
        text = "".join(part.value if isinstance(part, ast.Constant) else "[a-z_]+" for part in code.values)
        if re.fullmatch(r"[a-z_\[\]+-]*", text) and text != "[a-z_]+":
            yield level, text


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \|", (ROOT / "docs/dataset-findings.md").read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a code is listed twice"
    return dict(rows)


def test_every_code_is_documented_with_its_level():
    table = documented()
    codes = list(reported())
    assert len(codes) > 50
    for level, code in codes:
        rows = {name: levels for name, levels in table.items() if re.fullmatch(code, name)}
        assert rows, f"{code} is missing in docs/dataset-findings.md"
        assert any(level in levels for levels in rows.values()), f"{code} is a finding of level {level}"
    assert {f"label_{change}" for change in MESSAGES} <= table.keys()


def test_docs_list_no_other_codes():
    codes = [code for _, code in reported()]
    assert [name for name in documented() if not any(re.fullmatch(code, name) for code in codes)] == []


def test_codes_are_snake_case():
    assert [code for _, code in reported() if "-" in code.replace("a-z", "")] == []


def test_repeated_finding_is_counted_with_up_to_five_examples():
    report = Report()
    for number in range(7):
        report.warning("image_suffix", "{n} images", f"{number}.jpg")
    (finding,) = report.findings
    assert (finding.count, len(finding.examples)) == (7, MAX_EXAMPLES)
    assert finding.message == "7 images (0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, …)"


def test_findings_are_ordered_by_level():
    report = Report()
    report.note("split_drawn", "a note")
    report.error("no_images", "an error")
    report.warning("yaml_nc", "a warning")
    assert [finding.level for finding in report.findings] == list(LEVELS)


def test_all_errors_are_raised_together():
    report = Report()
    report.error("no_images", "first")
    report.error("no_labels", "second")
    report.warning("yaml_nc", "no error")
    with pytest.raises(DatasetError) as caught:
        report.raise_errors()
    assert list(caught.value.problems) == ["first", "second"]
