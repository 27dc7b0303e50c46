"""The files that a training process may use. It writes to its own folders and reads its dataset, model and programs.

Everything else is forbidden: the service's settings and keys, its queue, other runs, other users' files.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from trainer.core.ports import TrainingOrder
from trainer.sandbox.landlock import AccessPolicy
from trainer.training.child.socket_policy import mps_folder

_PROJECT = Path(__file__).parents[3]
_AMP_CHECK = "yolo26n.pt"  # weights for Ultralytics' test of mixed precision (AMP)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the C library always uses this folder
_SAMPLES = 32  # linked files that are tested before the sandbox is entered

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/opt/cuda", "/opt/nvidia", "/opt/rocm",
    "/run/current-system", "/run/opengl-driver", "/run/nvidia", "/run/nvidia-persistenced",
)  # fmt: skip
_SYSTEM_FILES = (
    "/proc", "/sys", "/var/cache/fontconfig", "/dev/random", "/dev/urandom",
    # libraries read these files of /etc; the other files can contain keys of the operator
    *(
        f"/etc/{name}"
        for name in (
            "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "localtime", "timezone", "passwd", "group",
            "nsswitch.conf", "hosts", "host.conf", "resolv.conf", "gai.conf", "protocols", "services", "mime.types", "fonts",
            "ssl/openssl.cnf", "ssl/certs", "pki/tls/openssl.cnf", "pki/tls/certs", "crypto-policies", "nvidia", "OpenCL",
            "vulkan", "nv_tegra_release", "alternatives", "os-release", "lsb-release", "matplotlibrc",
        )
    ),
)  # fmt: skip
# prefixes of names in /dev. InfiniBand is not one of them: its adapters reach other hosts without a socket, and all ranks
# of a training are on one host
_DEVICES = ("null", "zero", "full", "nvidia", "nvhost", "nvmap", "nvgpu", "dxg", "dri", "kfd")


def access_policy(order: TrainingOrder, environment: Mapping[str, str]) -> AccessPolicy:
    """Return the access policy for a training order, in a process with this environment."""
    linked = linked_files(order.dataset.root, order.dataset.readable)
    checkpoint = order.resume or order.best_of
    own = [order.dataset.root, order.dataset.data, order.model, *([checkpoint] if checkpoint else [])]
    private = [Path(folder) for folder in _values(environment, "HOME", "TMPDIR")]
    # a training starts in TMPDIR, and Python adds this folder to the paths of programs
    writable = [_real(str(folder)) for folder in (*private, order.run_dir, order.dataset.root)]
    programs = [root for root in _programs(environment) if not any(map(_real(str(root)).is_relative_to, writable))]
    devices = [Path("/dev", name) for name in os.listdir("/dev") if name.startswith(_DEVICES)]  # noqa: PTH208
    return AccessPolicy(
        write=(
            order.run_dir,
            order.dataset.root,
            *private,
            *devices,
            Path(f"/proc/{os.getpid()}/task"),
            *filter(None, [mps_folder() if order.devices else None]),
        ),
        unlisted=(_SHARED_MEMORY,),
        read=(
            *own,
            *linked,
            order.dataset.kept_pixels,
            *map(Path, _SYSTEM_FILES),
            *_amp_check(environment),
        ),
        run=(_PROJECT / "trainer", *(part for root in programs for part in _public_parts(root))),
        names=(_PROJECT,),  # a new Python process lists this folder to import `trainer`
        samples=(order.run_dir, *own, *islice(linked.values(), _SAMPLES), *_imported_files()),
    )


def linked_files(view: Path, readable: Sequence[Path]) -> dict[Path, Path]:
    """Return the folders and files to which the symlinks in `view` lead, each with one linked file.

    A folder with subfolders is replaced by the linked files in it: the subfolders can contain the files of others.
    A link to a place outside of the folders and files `readable`, which are real paths, is ignored.
    """
    names_in: dict[str, set[str]] = {}
    for target in _link_targets(str(view)):
        folder, _, name = target.rpartition("/")
        names_in.setdefault(folder, set()).add(name)
    files_in: dict[Path, set[str]] = {}
    for folder, names in names_in.items():
        links = names & _names_in(folder).links
        files_in.setdefault(_real(folder), set()).update(names - links)
        for real in (_real(f"{folder}/{name}") for name in links):
            if os.path.isdir(real):  # noqa: PTH112 - never raises
                files_in.setdefault(real, set()).update(_names_in(str(real)).files)
            else:
                files_in.setdefault(real.parent, set()).add(real.name)
    allowed = frozenset(readable)
    found: dict[Path, Path] = {}
    for place, names in files_in.items():
        present = _names_in(str(place))
        # without the permission to list a folder, each of its files is allowed
        files = names & present.files if present.files or present.folders else names
        is_allowed = not allowed.isdisjoint((place, *place.parents))
        if is_allowed and present.files and not present.folders:
            found.update((place, place / name) for name in islice(files, 1))
        else:
            paths = (place / name for name in files)
            found.update((path, path) for path in paths if is_allowed or path in allowed)
    return found


def _public_parts(root: Path) -> Iterator[Path]:
    """Yield the parts of a folder of programs without the folder of this project, which contains settings and keys.

    After `pip install .`, this project is in the folder of all packages, without other files.
    """
    numpy = find_spec("numpy")
    is_installed = numpy and numpy.origin and Path(numpy.origin).parents[1] == _PROJECT
    yield from [root] if is_installed else without(root, _PROJECT)


def without(root: Path, excluded: Path) -> Iterator[Path]:
    """Yield the folder trees and files in `root` without `excluded`."""
    if not excluded.is_relative_to(root):
        yield root
    elif root != excluded and os.access(root, os.R_OK):
        for child in root.iterdir():
            yield from without(child, excluded)


def _link_targets(folder: str) -> Iterator[str]:
    # paths are strings, because there can be 100,000 links; the training reports missing or unreadable files
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield os.path.join(folder, os.readlink(entry.path))  # noqa: PTH115, PTH118
            elif entry.is_dir():
                yield from _link_targets(entry.path)


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))  # pathlib raises for a loop of links


@dataclass(frozen=True)
class _Names:
    files: set[str]
    folders: set[str]
    links: set[str]


def _names_in(folder: str) -> _Names:
    """Return the names in a folder by kind. A folder that cannot be listed has no names."""
    found = _Names(set(), set(), set())
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            kind = found.links if entry.is_symlink() else found.folders if entry.is_dir() else found.files
            kind.add(entry.name)
    return found


def _programs(environment: Mapping[str, str]) -> Iterator[Path]:
    yield from map(Path, _SYSTEM)
    yield from map(Path, (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix))
    yield from map(Path, sysconfig.get_paths().values())
    yield from (Path(entry).absolute() for entry in sys.path if entry)
    yield from (
        Path(entry) for entry in _values(environment, "LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_HOME", "CUDA_PATH")
    )


def _imported_files() -> list[Path]:
    """Return files that will be imported. Some installers link packages to a cache outside of the installation."""
    specs = map(find_spec, ("torch", "ultralytics", "numpy", "trainer"))
    return [Path(spec.origin) for spec in specs if spec and spec.origin]


def _values(environment: Mapping[str, str], *names: str) -> list[str]:
    return [value for name in names for value in environment.get(name, "").split(os.pathsep) if os.path.isabs(value)]  # noqa: PTH117


def _amp_check(environment: Mapping[str, str]) -> list[Path]:
    settings = [Path(folder, "Ultralytics", "settings.json") for folder in _values(environment, "YOLO_CONFIG_DIR")]
    return [Path(json.loads(file.read_text())["weights_dir"], _AMP_CHECK) for file in settings if file.is_file()]
