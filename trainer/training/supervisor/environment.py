"""What a training process finds around it: an environment without secrets, and a private folder to write into."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from trainer.core.errors import Misconfigured

SANDBOX = "TRAINER_SANDBOX"  # "0": a training process does not confine itself; see reach.py
FAST_LOADER = "TRAINER_FAST_LOADER"  # bytes of decoded images that a training process may keep; see fast_loader.py

_PROJECT = Path(__file__).parents[3]  # the folder that holds the package `trainer`

# everything else of the supervisor's environment stays behind: keys, tokens, proxies with passwords, pytest's and
# torchrun's variables, and whatever switches on an integration
_ALLOWED = frozenset(
    {
        "PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_NUMERIC", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD",
        "CUDA_HOME", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG",
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY",
        "MALLOC_ARENA_MAX", "NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE",
        "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME",
    },
)  # fmt: skip

_FIXED = {
    "YOLO_OFFLINE": "1",
    "YOLO_AUTOINSTALL": "false",
    "ULTRALYTICS_SAFE_LOAD": "1",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML counts, whose indices the slots have
    # is_available() would otherwise start CUDA, after which a spare could not be told its GPU any more
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONIOENCODING": "utf-8:replace",
    "MPLBACKEND": "agg",
    # a user id without a passwd entry (containers) would otherwise fail torch's cache folder
    "USER": "trainer",
    "LOGNAME": "trainer",
}

# every key that the installed version knows (a test compares): a missing one is filled with its default, which is on
_SETTINGS = {
    "settings_version": "0.0.8",
    "uuid": "0" * 64,
    "sync": False,
    "api_key": "",
    "openai_api_key": "",
    "clearml": False,
    "comet": False,
    "dvc": False,
    "mlflow": False,
    "raytune": False,
    "tensorboard": False,
    "wandb": False,
    "vscode_msg": False,
    "openvino_msg": False,
}

PRIVATE = "child-"  # how the name of a private folder begins, in the children's home
PRIVATE_ELSEWHERE = "yolo-trainer-child-"  # and in the host's folder for temporary files
_LONGEST_LOCK = 60.0  # seconds that writing a font list can take
_LONGEST_TMPDIR = 70  # characters: a Unix socket below it has 107 at most, and torch makes some with long names


def child_environment(
    parent: Mapping[str, str],
    folder: Path,
    caches: Path,
    *,
    devices: tuple[int, ...] | None,
    threads: int | None,
) -> dict[str, str]:
    """The environment of a training process: `parent` through an allow-list, plus what keeps Ultralytics to itself.

    `folder` is private to the process (see `private_folder`), `caches` is kept between processes. `devices` are GPU
    indices (empty: no GPU); None for a spare, which learns them from its order.
    """
    kept = {name: value for name, value in parent.items() if name in _ALLOWED}
    paths = [str(_PROJECT), *filter(None, parent.get("PYTHONPATH", "").split(os.pathsep))]
    environment = (
        kept
        | _FIXED
        | {
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "YOLO_CONFIG_DIR": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "MPLCONFIGDIR": str(caches / "matplotlib"),  # its font list takes seconds to make
            "CUDA_CACHE_PATH": str(caches / "cuda"),  # kernels compiled for a GPU newer than the torch build
            "PYTHONPATH": os.pathsep.join(paths),
        }
    )
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    if threads is not None:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return environment


def private_folder(home: Path, weights: Path) -> Path:
    """A fresh folder that one training process owns: home, temporary files and Ultralytics' configuration.

    Its settings switch off everything that would talk to somebody; its font spares a download. `weights` is where
    Ultralytics looks for weights of its own (the AMP check's).
    """
    for kept in (home / "matplotlib", home / "cuda"):
        kept.mkdir(parents=True, exist_ok=True)
    _drop_left_locks(home / "matplotlib")
    roomy = len(str(home)) <= _LONGEST_TMPDIR - len(f"/{PRIVATE}12345678/tmp")
    folder = Path(tempfile.mkdtemp(prefix=PRIVATE, dir=home) if roomy else tempfile.mkdtemp(prefix=PRIVATE_ELSEWHERE))
    configuration = folder / "Ultralytics"
    configuration.mkdir()
    (folder / "tmp").mkdir()
    settings = _SETTINGS | {
        "datasets_dir": str(folder / "datasets"),
        "weights_dir": str(weights),
        "runs_dir": str(folder / "runs"),
    }
    (configuration / "settings.json").write_text(json.dumps(settings, indent=2))
    font = _font()
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        (configuration / name).symlink_to(font)
    return folder


def _drop_left_locks(folder: Path) -> None:
    """Matplotlib waits five seconds for a lock file, in every process, if a kill or a power cut left one."""
    for lock in folder.glob("*.matplotlib-lock"):
        with contextlib.suppress(OSError):  # training processes write here, so it may be anything
            if time.time() - lock.stat().st_mtime > _LONGEST_LOCK:
                lock.unlink()


def _font() -> Path:
    package = importlib.util.find_spec("matplotlib")  # found, not imported
    if package is None or package.origin is None:
        raise Misconfigured(
            f"matplotlib is not installed for {sys.executable}; run pip install -r requirements.txt with that Python",
        )
    return Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
