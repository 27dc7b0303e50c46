"""The package declares every imported package, and the pinned versions are in the declared ranges."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
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
    """Return the versions in a requirements file, by name. Each pin must have at least one SHA-256."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    pinned = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([^ ;]+)( ; [^-]+)?((?:\s+--hash=sha256:[0-9a-f]{64})+)", line.rstrip())
            assert match, f"{name}: {line[:80]} must be NAME==VERSION with hashes"
            pinned[canonicalize_name(match[1])] = match[2]
    return pinned


def assert_pins_match(pinned, allowed):
    assert pinned.keys() >= allowed.keys()
    assert [f"{name}=={pinned[name]}" for name in allowed if not allowed[name].contains(pinned[name])] == []


def needed_by(name, needed):
    """Add the installed packages that the installed package `name` needs on this platform to `needed`."""
    for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
        found = canonicalize_name(requirement.name)
        wanted = [{"extra": extra} for extra in (*needed.get(name, ()), "")]
        if requirement.marker is None or any(requirement.marker.evaluate(extra) for extra in wanted):
            is_new = found not in needed or not requirement.extras <= needed[found]
            needed[found] = needed.get(found, set()) | requirement.extras
            if is_new:
                needed_by(found, needed)
    return needed


def test_runtime_pins_are_in_the_declared_ranges():
    assert_pins_match(pins("requirements.txt"), ranges(PROJECT["project"]["dependencies"]))


def test_development_pins_are_in_the_declared_ranges():
    assert_pins_match(pins("requirements-dev.txt"), ranges(PROJECT["dependency-groups"]["dev"]))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_transitive_package_is_pinned(name):
    """`pip install --require-hashes` refuses a package without a pin."""
    pinned = pins(name)
    declared = PROJECT["project"]["dependencies"] if name == "requirements.txt" else PROJECT["dependency-groups"]["dev"]
    needed = {canonicalize_name(r.name): r.extras for r in map(Requirement, declared)}
    for package in list(needed):
        needed_by(package, needed)

    assert needed.keys() <= pinned.keys()
    installed = {package: importlib.metadata.version(package) for package in needed if package != "setuptools"}
    assert installed == {package: pinned[package] for package in installed}


def test_both_requirements_files_pin_the_same_versions():
    runtime, development = pins("requirements.txt"), pins("requirements-dev.txt")

    assert {name: runtime[name] for name in runtime.keys() & development.keys()}.items() <= development.items()


def test_requirements_name_no_index():
    text = "".join((ROOT / name).read_text() for name in ("requirements.txt", "requirements-dev.txt"))

    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)


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
