"""The environment variables of a training process, without secrets, and its private folder."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

_PROJECT = Path(__file__).parents[3]  # the folder that holds the package `trainer`

# The process gets no other variable. The others include keys, tokens, proxies with passwords, variables of pytest and
# torchrun, and variables that enable an integration.
_ALLOWED = frozenset(
    {
        "PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_NUMERIC", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD",
        "CUDA_HOME", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG",
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        "MALLOC_ARENA_MAX", "NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE",
        "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME",
    },
)  # fmt: skip

_FIXED = {
    "YOLO_OFFLINE": "1",
    "YOLO_AUTOINSTALL": "false",
    "ULTRALYTICS_SAFE_LOAD": "1",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # CUDA uses the same GPU indices as NVML and the training order
    # otherwise is_available() would initialize CUDA, and a prestarted process could no longer choose its GPU
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONIOENCODING": "utf-8:replace",
    "MPLBACKEND": "agg",
    # torch needs a user name for its cache folder; a container's user may have no passwd entry
    "USER": "trainer",
    "LOGNAME": "trainer",
}

# every setting of the installed Ultralytics (a test compares them), because a missing one would enable its integration
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

PRIVATE = "child-"  # prefix of private folders in the home of training processes
PRIVATE_ELSEWHERE = "yolo-trainer-child-"  # prefix in the host's folder for temporary files
FONTS = "matplotlib"  # the folder for matplotlib's list of fonts, in a private folder
_LONGEST_TMPDIR = 70  # characters: a Unix socket path has at most 107, and torch creates sockets with long names


def child_environment(parent: Mapping[str, str], folder: Path, *, devices: tuple[int, ...] | None) -> dict[str, str]:
    """Return the environment of a training process: allowed variables of `parent`, and variables for the isolation.

    `folder` is private to the process (see `private_folder`), so a training cannot leave a file for the next one.
    `devices` are GPU indices (empty: no GPU), or None for a prestarted process, which gets them with its training order.
    """
    paths = [str(_PROJECT), *filter(None, parent.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {
        **{name: value for name, value in parent.items() if name in _ALLOWED},
        **_FIXED,
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "YOLO_CONFIG_DIR": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "MPLCONFIGDIR": str(folder / FONTS),
        # the default is a folder in /var/tmp that every local user can create
        "POLARS_TEMP_DIR": str(folder / "tmp" / "polars"),
        "POLARS_OOC_SPILL_DIR": str(folder / "tmp" / "polars"),
        "CUDA_CACHE_PATH": str(folder / "cuda"),  # kernels compiled for a GPU newer than the torch build
        "PYTHONPATH": os.pathsep.join(paths),
    }
    if devices is None:
        # numpy and OpenCV would start threads at their import, and the sandbox does not restrict earlier threads
        environment["OPENBLAS_NUM_THREADS"] = "1"
    else:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    return environment


def private_folder(home: Path, weights: Path) -> Path:
    """Create the private folder of one training process: home, temporary files, configuration of Ultralytics.

    The settings in the folder disable all use of the network. Fonts in the folder replace a download. Ultralytics looks
    in the folder `weights` for the weights of its AMP check. Raises OSError.
    """
    home.mkdir(parents=True, exist_ok=True)
    is_short = len(str(home)) <= _LONGEST_TMPDIR - len(f"/{PRIVATE}12345678/tmp")
    folder = Path(
        tempfile.mkdtemp(prefix=PRIVATE, dir=home) if is_short else tempfile.mkdtemp(prefix=PRIVATE_ELSEWHERE)
    )
    configuration = folder / "Ultralytics"
    configuration.mkdir()
    (folder / "tmp").mkdir()
    settings = _SETTINGS | {
        "datasets_dir": str(folder / "datasets"),
        "weights_dir": str(weights),
        "runs_dir": str(folder / "runs"),
    }
    (configuration / "settings.json").write_text(json.dumps(settings, indent=2))
    matplotlib = importlib.util.find_spec("matplotlib")  # this finds the package without an import
    if matplotlib and matplotlib.origin:  # otherwise the process reports that the installation is incomplete
        for name in ("Arial.ttf", "Arial.Unicode.ttf"):
            (configuration / name).symlink_to(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")
    return folder
