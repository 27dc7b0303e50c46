"""Log lines are constant texts with fields, and docs/operating.md lists each warning and error."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operating.md").read_text()
METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
BOUNDARIES = {"error_boundary", "call_or"}  # functions of trainer/worker that log their text as an error
VARIABLE = {"event.kind", "event"}  # allowed variables: the kind of an event, the text of an error boundary


class Variable(str):
    """The source of an expression that is not a constant."""

    __slots__ = ()


def logged():
    """Yield the level and the text of each log line in the source."""
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        tree = ast.parse(path.read_text())
        if "structlog" not in path.read_text() and not BOUNDARIES & {
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name)
        }:
            continue
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func).rpartition(".")[2]
            if name in METHODS and isinstance(call.func, ast.Attribute) and call.args:
                yield "error" if name == "exception" else name, text_of(call.args[0], tree)
            elif name in BOUNDARIES:
                yield "error", text_of(call.args[1 if name == "call_or" else 0], tree)


def text_of(argument, tree):
    """Return the text of a literal, or of the name of a constant. Return the source of any other expression."""
    if isinstance(argument, ast.Name):
        values = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == argument.id
        ]
        argument = next((v for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)), argument)
    return argument.value if isinstance(argument, ast.Constant) else Variable(ast.unparse(argument))


def test_log_lines_are_constant_texts():
    assert {text for _, text in logged() if isinstance(text, Variable)} <= VARIABLE


def test_every_warning_and_error_in_the_log_is_documented():
    table = PAGE.split("## Log\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `([^`]+)` \| (warning|error|warning, error) \|", table, re.MULTILINE))
    levels = {}
    for level, text in logged():
        if not isinstance(text, Variable) and level in {"warning", "error"}:
            levels.setdefault(text, set()).add(level)

    assert documented == {(text, ", ".join(sorted(found, reverse=True))) for text, found in levels.items()}
