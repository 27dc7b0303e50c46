"""Rules for the code as a whole: imports, error boundaries, names and sizes."""

import ast
import graphlib
from pathlib import Path

import pytest

from trainer.settings import Settings

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "trainer").rglob("*.py"))

ROOMS = {"request", "weights", "worker", "jobs", "storage", "datasets", "training", "reporting", "settings"}
# room → the rooms that its files are allowed to import
ALLOWED = {
    "core": {"core"},
    "remote": {"remote", "core"},
    "disk": {"disk"},
    "sandbox": {"sandbox"},
    **{room: {room, "remote", "core", "disk"} for room in ROOMS},
    "training": {"training", "sandbox", "remote", "core", "disk"},
    "datasets": {"datasets", "sandbox", "remote", "core", "disk"},
    "request": {"request", "core"},
    # rooms that only entry points use
    "logs": {"logs", "core"},
    "host": {"host", "core"},
    "demo": {"demo", "core", "settings"},
    "terminal": {"terminal", "core"},
    "systemd": {"systemd"},
    "signals": {"signals", "core"},
    "streams": {"streams"},
}
ENTRY_POINTS = {"wiring", "cli", "__init__", "doctor"}

# room → its parts (sub-rooms and modules) → the other parts that each part may import
INSIDE = {
    "datasets": {
        "findings": set(),
        "untrusted": set(),
        "image_kinds": set(),
        "images": {"image_kinds"},
        "cache": set(),
        "samples": {"images"},
        "yaml_text": {"findings"},
        "data_yaml": {"findings", "untrusted", "yaml_text"},
        "labels": {"findings"},
        "decoder": set(),
        "source": {"cache", "data_yaml", "decoder", "findings", "image_kinds", "untrusted"},
        "formats": {"data_yaml", "findings", "image_kinds", "images", "samples", "untrusted"},
        "checks": {"findings", "images", "labels", "samples"},
        "view": {"checks", "findings", "labels", "samples"},
        "inspection": {
            "checks",
            "data_yaml",
            "decoder",
            "findings",
            "formats",
            "images",
            "samples",
            "source",
            "view",
        },
        "confined": {"decoder", "inspection", "source"},
        "prepare": {"cache", "decoder", "images", "inspection", "source", "view"},
    },
    "training": {
        "wire": set(),
        "exports": set(),
        "speedups": set(),
        "supervisor": {"wire"},
        "yolo": {"speedups", "wire"},
        "child": {"wire", "yolo"},
    },
    "request": {
        "fields": set(),
        "model_reference": set(),
        "split": {"fields"},
        "train_arguments": {"fields"},
        "configuration": {"fields", "split", "train_arguments"},
        "unnest": {"configuration", "split", "train_arguments"},
        "parse": {"configuration", "fields", "model_reference", "train_arguments", "unnest"},
        "schema": {"configuration", "fields", "split", "train_arguments", "unnest"},
    },
}

# third-party package → the only rooms and modules that may import the package
HOMES = {
    "torch": {"training/yolo"},
    "ultralytics": {"training/yolo", "training/speedups"},
    "supabase": {"remote/supabase.py"},
    "postgrest": {"remote/supabase.py"},
    "httpx": {"remote"},
    "pydantic_settings": {"settings.py"},
    "typer": {"cli"},
    "rich": {"terminal.py"},
    "pynvml": {"host.py"},
    "prometheus_client": {"reporting"},
}
# modules that may catch every exception
ERROR_BOUNDARIES = {
    "worker/error_boundary.py",
    "reporting/background.py",
    "reporting/reporters.py",
    "datasets/confined/main.py",
    "training/child/main.py",
    "training/child/ddp_rank.py",
}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT / "trainer"))


def room(path: Path) -> str:
    return relative(path).split("/")[0].removesuffix(".py")


def part(path: Path) -> str:
    """Return the sub-room or module of a file inside its room; "" for `__init__` of the room."""
    name = relative(path).split("/")[1].removesuffix(".py")
    return "" if name == "__init__" else name


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_each_room_imports_only_allowed_rooms(path):
    if room(path) in ENTRY_POINTS:
        return
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("trainer.")}
    assert ours <= ALLOWED[room(path)]


@pytest.mark.parametrize("room", INSIDE)
def test_parts_of_a_room_have_no_import_cycle(room):
    graphlib.TopologicalSorter(INSIDE[room]).prepare()


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in INSIDE and part(path)], ids=relative)
def test_each_part_of_a_room_imports_only_allowed_parts(path):
    own, prefix = part(path), f"trainer.{room(path)}."

    used = {name.removeprefix(prefix).split(".")[0] for name in imports(path) if name.startswith(prefix)}

    assert used - {own} <= INSIDE[room(path)][own]


@pytest.mark.parametrize("room", INSIDE)
def test_table_of_parts_contains_only_imports_in_use(room):
    prefix = f"trainer.{room}."
    for name, allowed in INSIDE[room].items():
        files = [path for path in FILES if relative(path).startswith((f"{room}/{name}/", f"{room}/{name}.py"))]
        used = {i.removeprefix(prefix).split(".")[0] for path in files for i in imports(path) if i.startswith(prefix)}
        assert files, name
        assert allowed <= used, name


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_third_party_package_is_imported_only_in_allowed_places(path):
    for name in imports(path):
        package = name.split(".")[0]
        if package in HOMES:
            assert any(relative(path).startswith(home) for home in HOMES[package]), f"{package} in {relative(path)}"


def test_service_never_imports_torch():
    """Only modules of the training process import torch. The service does not import these modules."""
    import subprocess
    import sys

    code = "import trainer.wiring.service, trainer.cli, sys; sys.exit(any(m in sys.modules for m in ('torch', 'ultralytics', 'numpy', 'cv2')))"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_error_boundaries_catch_every_exception():
    broad = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = {getattr(n, "id", "") for n in ast.walk(node.type)} if node.type else {"Exception"}
                if names & {"Exception", "BaseException"} and not reraises(node):
                    broad.add(relative(path))

    assert broad <= ERROR_BOUNDARIES


def reraises(handler: ast.ExceptHandler) -> bool:
    """Return whether the handler raises the error again after its cleanup."""
    return isinstance(handler.body[-1], ast.Raise)


def test_only_settings_reads_the_environment():
    readers = {
        relative(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }

    # the training process sets its environment variables before it imports torch; the script adds variables for its program
    allowed = {"settings.py", "sandbox/private_network.py"}
    assert {name for name in readers if not name.startswith("training/")} <= allowed


def test_every_setting_is_used():
    used = {
        node.attr
        for path in FILES
        if relative(path) == "settings.py" or "trainer.settings" in imports(path)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "settings", "service"}
    }

    assert set(Settings.model_fields) - used == set()


def test_no_module_has_a_vague_name():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base", "types", "models"}

    assert not [relative(path) for path in FILES if path.stem in vague]


def test_names_of_test_files_are_unique():
    """Pytest cannot collect two test files with the same name, because the test folders are not packages."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]

    assert sorted(names) == sorted(set(names))


# ── sizes ──

LARGEST_FILE = 300  # lines
LARGEST_FUNCTION = 60  # lines


def function_lengths() -> list[int]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions))
    return sorted(node.end_lineno - node.lineno + 1 for node in nodes)


def test_no_file_is_too_large():
    files = [path for folder in ("trainer", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]

    assert [str(path) for path in files if len(path.read_text().splitlines()) > LARGEST_FILE] == []


def test_functions_are_short():
    lengths = function_lengths()

    assert lengths[-1] <= LARGEST_FUNCTION
    assert lengths[len(lengths) * 9 // 10] <= 25
    assert lengths[len(lengths) // 2] <= 8
