"""The fault matrix names only existing tests. Tests name only defined faults and invariants."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MATRIX = (TESTS / "faults" / "README.md").read_text()
RELIABILITY = (TESTS.parent / "docs" / "reliability.md").read_text()
CITED = re.findall(r"`(\w+/(?:\w+/)?test_\w+)`(?: \(([a-z0-9_, ]+)\))?", MATRIX)


def test_matrix_cites_every_test_file_of_its_folder():
    files = {f"faults/{path.stem}" for path in (TESTS / "faults").glob("test_*.py")}

    # test_proxy tests the fault injection, not a fault of the service
    assert files - {file for file, _ in CITED} == {"faults/test_proxy"}


@pytest.mark.parametrize(("file", "parts"), CITED)
def test_cited_tests_exist(file, parts):
    names = re.findall(r"^def (test_\w+)", (TESTS / f"{file}.py").read_text(), re.MULTILINE)

    for part in parts.split(", "):
        assert any(part in name for name in names), part


def test_every_fault_and_invariant_that_a_test_names_is_defined():
    defined = set(re.findall(r"^\| ([FI]\d+) \|", RELIABILITY, re.MULTILINE))
    text = "\n".join(path.read_text() for path in sorted((TESTS / "faults").iterdir()) if path.is_file())

    assert set(re.findall(r"\b([FI][1-9]\d?)\b", text)) <= defined
