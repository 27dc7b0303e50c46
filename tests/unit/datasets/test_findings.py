"""Findings: counts, examples, and one documented code for each kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.core.errors import DatasetError
from trainer.datasets.findings import KINDS, MAX_EXAMPLES, Report
from trainer.datasets.labels.convert import CHANGES

ROOT = Path(__file__).parents[3]
LEVELS = ("error", "warning", "note")


def test_every_code_is_documented_with_its_level():
    text = (ROOT / "docs/dataset-findings.md").read_text()
    documented = re.findall(r"^\| `([^`]+)` \| ([a-z]+)(?:, warning)? \|", text, re.MULTILINE)

    assert sorted(documented) == sorted((code, level) for code, (level, _) in KINDS.items())


def test_every_code_is_used_in_the_source():
    code = "".join(path.read_text() for path in (ROOT / "trainer/datasets").rglob("*.py") if path.stem != "findings")
    families = {f"label_{change}" for change in CHANGES} | {
        f"{family[0]}{split}{family[1]}"
        for family in (("yaml_", ""), ("yaml_no_", ""), ("", "_empty"), ("", "_unlabeled"))
        for split in ("train", "val", "test")
    }

    assert [kind for kind in KINDS if f'"{kind}"' not in code and kind not in families] == []


def test_every_reported_code_is_a_known_finding():
    """`Report.add` fails for an unknown code, but only when a dataset has the problem."""
    reported = re.compile(r"report\.add\(\s*\"([^\"]+)\"")
    paths = (ROOT / "trainer/datasets").rglob("*.py")

    assert {code for path in paths for code in reported.findall(path.read_text())} <= KINDS.keys()


def test_codes_are_snake_case():
    assert [code for code in KINDS if not re.fullmatch(r"[a-z]+(_[a-z]+)*", code)] == []


def test_repeated_finding_is_counted_with_up_to_five_examples():
    report = Report()
    for number in range(7):
        report.add("image_suffix", f"{number}.jpg")
    (finding,) = report.findings
    assert (finding.count, len(finding.examples)) == (7, MAX_EXAMPLES)
    assert finding.message.startswith("7 images have a file name suffix")
    assert finding.message.endswith("(0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, …)")


def test_findings_are_ordered_by_level():
    report = Report()
    report.add("coco_crowd")
    report.add("no_images")
    report.add("names_missing")
    assert [finding.level for finding in report.findings] == list(LEVELS)


def test_all_errors_are_raised_in_one_exception():
    report = Report()
    report.add("no_images")
    report.add("split_unknown")
    report.add("names_missing")
    with pytest.raises(DatasetError) as caught:
        report.raise_errors()
    assert list(caught.value.problems) == [KINDS["no_images"][1], KINDS["split_unknown"][1]]
