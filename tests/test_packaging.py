"""The package declares every imported package, and the pinned versions are in the declared ranges."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trainer

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# import name → name of the distribution, if the names differ
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "yaml": "pyyaml",
    "pynvml": "nvidia-ml-py",
    "pydantic_core": "pydantic",
}


def ranges(requirements):
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, requirements)}


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    found = [re.fullmatch(r"([\w-]+)==(\S+)", line) for line in lines if line and line[0] not in "#-"]
    assert all(found), f"{name}: every line must be NAME==VERSION"
    return {canonicalize_name(match[1]): match[2] for match in found}


def assert_pins_match(pinned, allowed):
    assert pinned.keys() == allowed.keys()
    assert [f"{name}=={pinned[name]}" for name in allowed if not allowed[name].contains(pinned[name])] == []


def test_runtime_pins_are_in_the_declared_ranges():
    assert_pins_match(pins("requirements.txt"), ranges(PROJECT["project"]["dependencies"]))


def test_development_pins_are_in_the_declared_ranges():
    assert_pins_match(pins("requirements-dev.txt"), ranges(PROJECT["dependency-groups"]["dev"]))


def test_development_requirements_include_runtime_requirements():
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()


def test_every_imported_package_is_a_dependency():
    imported = set()
    for path in (ROOT / "trainer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"trainer"}
    distributions = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in third_party}
    extras = [requirement for extra in PROJECT["project"]["optional-dependencies"].values() for requirement in extra]

    assert distributions <= ranges([*PROJECT["project"]["dependencies"], *extras]).keys()


def test_every_dependency_except_torchvision_is_imported():
    """Torchvision is only pinned, because its version must match torch."""
    source = "\n".join(path.read_text() for path in (ROOT / "trainer").rglob("*.py"))
    names = {distribution: name for name, distribution in DISTRIBUTIONS.items() if name != "pydantic_core"}
    imports = {name: names.get(name, name.replace("-", "_")) for name in ranges(PROJECT["project"]["dependencies"])}

    unused = {name for name, module in imports.items() if not re.search(rf"(import|from) {module}\b", source)}
    assert unused == {"torchvision"}


def test_version_is_defined_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "trainer/__init__.py"
    assert f"## [{trainer.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_contains_the_files_that_the_operator_needs():
    shared = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]

    assert shared.keys() == {"supabase/migrations", "systemd", ".env.example"}
    assert all((ROOT / name).exists() and place == f"share/yolo-trainer/{name}" for name, place in shared.items())
    assert "`share/yolo-trainer/`" in (ROOT / "README.md").read_text()


def test_package_is_typed_and_has_a_console_script():
    assert (ROOT / "trainer" / "py.typed").exists()
    assert PROJECT["project"]["scripts"] == {"yolo-trainer": "trainer.cli:main"}
