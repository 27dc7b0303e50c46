"""What a training may reach on this host: its own folders to write into, what it is made from to read.

Everything else stays out of reach: the service's settings and keys, its queue, other runs, other people's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from trainer.core.ports import TrainingOrder
from trainer.training.sandbox.landlock import Refused, close_network, confine_files

_PROJECT = Path(__file__).parents[3]
_AMP_CHECK = "yolo26n.pt"  # what Ultralytics tries mixed precision with, found in its folder for weights
_SAMPLES = 32  # paths that are tried before the door closes

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/opt/cuda", "/opt/nvidia", "/opt/rocm",
    "/run/current-system", "/run/opengl-driver", "/run/nvidia", "/run/nvidia-persistenced",
)  # fmt: skip
_FACTS = (
    "/proc", "/sys", "/var/cache/fontconfig", "/dev/random", "/dev/urandom",
    # of /etc what libraries look at: operators keep keys there, too
    *(
        f"/etc/{name}"
        for name in (
            "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "localtime", "timezone", "passwd", "group",
            "nsswitch.conf", "hosts", "host.conf", "resolv.conf", "gai.conf", "protocols", "services", "mime.types", "fonts",
            "ssl/openssl.cnf", "ssl/certs", "pki/tls/openssl.cnf", "pki/tls/certs", "crypto-policies", "nvidia", "OpenCL",
            "vulkan", "nv_tegra_release", "libibverbs.d", "alternatives", "os-release", "lsb-release", "matplotlibrc",
        )
    ),
)  # fmt: skip
_DEVICES = (
    "null",
    "zero",
    "full",
    "shm",
    "nvidia",
    "nvhost",
    "nvmap",
    "nvgpu",
    "dxg",
    "dri",
    "kfd",
    "infiniband",
)  # begin so
_MPS = Path("/tmp/nvidia-mps")  # noqa: S108 - where NVIDIA's multi-process service has its pipes


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Trees and files, by what may be done with them. `samples` are some of those that the training will open."""

    write: tuple[Path, ...]
    read: tuple[Path, ...]
    run: tuple[Path, ...]
    names: tuple[Path, ...]
    samples: tuple[Path, ...]


def confine(order: TrainingOrder, environment: Mapping[str, str]) -> list[str]:
    """Close everything but the order's reach to this thread and all that it starts; what could not be closed, and why."""
    order.run_dir.mkdir(parents=True, exist_ok=True)
    several = len(order.devices) > 1  # they speak TCP among themselves
    if order.devices:
        wake_driver(Path("/dev"))
    reach = reach_of(order, environment)
    missing = []
    try:
        confine_files(
            write=reach.write,
            read=reach.read,
            run=reach.run,
            names=reach.names,
            tcp=several,
            samples=reach.samples,
        )
    except Refused as error:
        missing.append(f"files (Landlock: {error.strerror})")
    try:
        if not several:
            close_network()
    except Refused as error:
        missing.append(f"the network (seccomp: {error.strerror})")
    return missing


def wake_driver(devices: Path) -> None:
    """Have the device made that CUDA, after a boot, would have made by a program whose rights are refused from now on."""
    program = shutil.which("nvidia-modprobe")
    if program and (devices / "nvidiactl").exists() and not (devices / "nvidia-uvm").exists():
        subprocess.run([program, "-u", "-c", "0"], stdin=subprocess.DEVNULL, check=False)


def reach_of(order: TrainingOrder, environment: Mapping[str, str]) -> Reach:
    """What `order` needs, in a process with this environment (environment.py)."""
    linked = linked_files(order.dataset.root)
    checkpoint = order.resume or order.best_of
    own = [order.dataset.root, order.dataset.data, order.model, *([checkpoint] if checkpoint else [])]
    matplotlib = [Path(folder) for folder in _values(environment, "MPLCONFIGDIR")]
    # kept for every run after this one, so it is written once
    unfinished = [folder for folder in matplotlib if not any(folder.glob("fontlist-*.json"))]
    private = [Path(folder) for folder in _values(environment, "HOME", "TMPDIR", "YOLO_CONFIG_DIR", "CUDA_CACHE_PATH")]
    devices = [Path("/dev", name) for name in os.listdir("/dev") if name.startswith(_DEVICES)]  # noqa: PTH208
    return Reach(
        write=(
            order.run_dir,
            order.dataset.root,
            *private,
            *unfinished,
            *devices,
            Path(f"/proc/{os.getpid()}/task"),
            _MPS,
        ),
        read=(*own, *linked, *matplotlib, *map(Path, _FACTS), *_amp_check(environment)),
        run=(_PROJECT / "trainer", *(part for root in _programs(environment) for part in around(root, _PROJECT))),
        names=(_PROJECT,),  # to be imported from, by a process that starts anew
        samples=(order.run_dir, *own, *islice(linked.values(), _SAMPLES), *_packages()),
    )


def linked_files(view: Path) -> dict[Path, Path]:
    """The folders outside of `view` that its symlinks lead into, each with one of the files."""
    names_in: dict[str, set[str]] = {}
    for target in _link_targets(str(view)):
        folder, _, name = target.rpartition("/")
        names_in.setdefault(folder, set()).add(name)
    found: dict[Path, Path] = {}
    for folder, names in names_in.items():
        found.setdefault(_real(folder), Path(folder, next(iter(names))))
        for name in names & _symlinks_in(folder):
            real = _real(f"{folder}/{name}")
            found.setdefault(real.parent, real)
    return found


def around(root: Path, hole: Path) -> Iterator[Path]:
    """Trees that together are `root` without `hole`."""
    if not hole.is_relative_to(root):
        yield root
    elif root != hole and os.access(root, os.R_OK):
        for child in root.iterdir():
            yield from around(child, hole)


def _link_targets(folder: str) -> Iterator[str]:
    # plain strings: there can be a hundred thousand; what is missing or locked, the training will say in its own words
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield os.path.join(folder, os.readlink(entry.path))  # noqa: PTH115, PTH118
            elif entry.is_dir():
                yield from _link_targets(entry.path)


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))  # pathlib's own raises for a loop


def _symlinks_in(folder: str) -> set[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_symlink()}
    return set()  # files of it can perhaps be read, names cannot


def _programs(environment: Mapping[str, str]) -> Iterator[Path]:
    yield from map(Path, _SYSTEM)
    yield from map(Path, (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix))
    yield from map(Path, sysconfig.get_paths().values())
    yield from (Path(entry).absolute() for entry in sys.path if entry)
    yield from (
        Path(entry) for entry in _values(environment, "LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_HOME", "CUDA_PATH")
    )


def _packages() -> list[Path]:
    """Files that are imported; an installation of links into some cache has them elsewhere."""
    specs = map(find_spec, ("torch", "ultralytics", "numpy", "trainer"))
    return [Path(spec.origin) for spec in specs if spec and spec.origin]


def _values(environment: Mapping[str, str], *names: str) -> list[str]:
    return [value for name in names for value in environment.get(name, "").split(os.pathsep) if os.path.isabs(value)]  # noqa: PTH117


def _amp_check(environment: Mapping[str, str]) -> list[Path]:
    settings = [Path(folder, "Ultralytics", "settings.json") for folder in _values(environment, "YOLO_CONFIG_DIR")]
    return [Path(json.loads(file.read_text())["weights_dir"], _AMP_CHECK) for file in settings if file.is_file()]
